"""RunService: everything that the API says and does about one run, without a word of HTTP.

Reading: figures are put together from the selection, the loaders and the files that the trainer writes, and kept for a
moment, so that any number of watchers cost what one does. Changing: into the log first, as everybody's changes are.
A thread follows what the trainer consumes and measures control latency.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.api.kept import Kept
from deploy.api.latency import Consumption, LatencyMeter, PendingChange, bound_steps
from deploy.api.line_index import LineIndex
from deploy.api.models import ControlRequest, RunRequest, ScaleRequest
from deploy.api.parts import Parts, member
from deploy.api.record import QUIET_KINDS, Record, finite
from deploy.api.samples import Samples, first_law
from deploy.observe.run_log import plain_entry
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from scoring import POLICIES, Control, Event, VersionConflict
from scoring.policies import DIRECTION

log = logging.getLogger(__name__)

FOLLOW_S = 0.1
"""Seconds between two looks at what the trainer consumed."""
STATE_S, VIEW_S = 0.25, 2.0
"""How old a state, and a view of the whole table, may be."""
AUTHOR = "api"
"""Author of the measurements in the run log."""
LATENCY_KIND = "control_latency"
SCHEDULE_POINTS = 200


class NotNow(Exception):
    """A run that cannot do what is asked of it in the state that it is in."""


class Conflict(Exception):
    """A change that came after another one."""

    def __init__(self, message: str, version: int, winner: dict[str, Any] | None) -> None:
        super().__init__(message)
        self.version, self.winner = version, winner


class RunService:
    """One run. Safe to use from several threads; enter it for as long as the run is followed."""

    def __init__(self, config: RunConfig, run: RunDir, parts: Parts) -> None:
        self.config, self.run, self.parts = config, run, parts
        self.latency = LatencyMeter()
        self.metrics = LineIndex(run.metrics)
        self._consumption = Consumption(run.consumed)
        self._kept = Kept()
        self._started_s = time.time()
        names = (*POLICIES, *config.curriculum.user_policies, config.curriculum.policy)
        self._policies = {name: any(factor in DIRECTION for factor in name.split("*")) for name in names}
        first = (0, *finite(first_law(config)))
        self._record = Record(lambda **bounds: parts.selection.log(None, **bounds), initial=first)
        self.samples = Samples(config, file=self._record.distances)
        self.readers = 0
        """Who follows the stream; counted in the server's one thread."""
        self.over = threading.Event()
        """Set when the run ends, for whoever is watching it."""
        self._thread = threading.Thread(target=self._follow, name="control-latency", daemon=True)

    def __enter__(self) -> Self:
        if not self.parts.read_only:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        if self._thread.is_alive():
            self._thread.join(10 * FOLLOW_S)
        self.samples.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The run at a glance."""
        return self._kept("state", STATE_S, self._state)

    def loaders(self) -> dict[str, Any]:
        """The loaders, who wished for so many, and why."""
        return self._kept("loaders", STATE_S, self._loaders)

    def curve(self) -> dict[str, Any]:
        """Effective size: what was in force, and what the schedule says."""
        total, window_steps = self.config.train.total_steps, self.config.train.window_steps
        schedule = self.config.curriculum.schedule_by_progress()
        stride = window_steps * max(1, -(-total // (window_steps * SCHEDULE_POINTS)))
        scheduled = [[step, schedule(step / total)] for step in (*range(0, total, stride), total)]
        manual = bool(self.state()["selection"]["manual"])
        past = self._kept("curve", VIEW_S / 4, self._record.curve)
        return {"past": past, "scheduled": scheduled, "manual": manual, "window_steps": window_steps}

    def view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """A view of the whole table, at most VIEW_S old."""
        key = (name, *sorted(arguments.items()))
        return self._kept(key, VIEW_S, lambda: finite(self.parts.selection.view(name, **arguments)))

    def top(self, by: str, k: int) -> dict[str, Any]:
        """The samples with the most of something, or the prototypes."""
        if by == "prototypes":
            found = self.view("samples", ids=tuple(self.samples.prototype_ids(k)))
        else:
            found = self.view("top", by=by, k=k)
        return {"by": by, "samples": [self.samples.describe(sample) for sample in found["samples"]]}

    def sample(self, sample_id: int) -> dict[str, Any]:
        """What is known of one sample."""
        return self.samples.describe(self.view("samples", ids=(sample_id,))["samples"][0])

    def scores(self) -> dict[str, Any]:
        """Score quantiles and selection rounds."""
        return {**self.view("scores"), "rounds": self._kept("rounds", VIEW_S, self._record.rounds)}

    def bad_samples(self, limit: int) -> dict[str, Any]:
        """Samples that could not be decoded."""
        return self._record.bad_samples(limit)

    def entries(self, limit: int, before: int | None, *, changes: bool) -> dict[str, Any]:
        """The run's log, the newest or those before an entry."""
        without = QUIET_KINDS if changes else ()
        found = self.parts.selection.log(limit + 1, before=before, without=without)
        return {"entries": [plain_entry(entry) for entry in found[-limit:]], "more": len(found) > limit}

    # -- changing -----------------------------------------------------------------------------------------------------

    def control(self, asked: ControlRequest, arrived_s: float) -> dict[str, Any]:
        """Change what is drawn; the reply names the first window under it.

        Raises:
            ValueError: out of range.
            Conflict: another change came first.
            NotNow: the run is over.
        """
        self._require_alive()
        if asked.kind == "distances":
            asked = asked.model_copy(update={"value": self._distances_file(asked.value)})
        control = Control(**asked.model_dump())
        try:
            reply = self.parts.selection.control(control)
        except VersionConflict as conflict:
            winner = self._record.last_control()
            raise Conflict(_told(asked, conflict, winner), conflict.current, winner) from None
        self._kept.clear()
        if not self._resting():
            what = f"{asked.kind} by {asked.author}"
            self.latency.expect(
                PendingChange(arrived_s=arrived_s, acknowledged_s=time.time(), step=reply.step, what=what)
            )
        return dict(finite(asdict(reply)))

    def scale(self, asked: ScaleRequest) -> dict[str, Any]:
        """Wish for another number of loaders.

        Raises:
            NotNow: the run is over, or its loaders are part of one process.
        """
        self._require_alive()
        if self.parts.fleet is None or not self.parts.scalable:
            raise NotNow("this run has its loaders in its own process; start it under Ray (without --no-ray) to scale.")
        reply = self.parts.fleet.scale(asked.loaders, author=asked.author, reason=asked.reason)
        self._kept.clear()
        return asdict(reply)

    def pause(self, asked: RunRequest) -> dict[str, Any]:
        """Let the trainers rest before their next step."""
        return self._request("pause", asked, self.run.pause_request.touch)

    def resume(self, asked: RunRequest) -> dict[str, Any]:
        """Let them go on."""
        return self._request("resume", asked, lambda: self.run.pause_request.unlink(missing_ok=True))

    def stop(self, asked: RunRequest) -> dict[str, Any]:
        """Let them write a checkpoint and end."""
        return self._request("stop", asked, self.run.stop_request.touch)

    def export(self, asked: RunRequest) -> dict[str, Any]:
        """Write the sample table into the run's report folder, and nowhere else."""
        self._require_alive()
        path = self.run.report.resolve() / "samples.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return {"path": str(path), **self.parts.selection.view("export", path=str(path))}

    def _request(self, kind: str, asked: RunRequest, do: Callable[[], None]) -> dict[str, Any]:
        self._require_alive()
        self.parts.selection.record(Event(kind=kind, author=asked.author, message=asked.reason))
        do()
        self.latency.forget()
        self._kept.clear()
        return self._asked_for()

    def _require_alive(self) -> None:
        if self.parts.read_only:
            raise NotNow(f"this run is over and served for reading; `tempera resume {self.run.path}` continues it.")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _distances_file(self, value: Any) -> str:
        """Where the file lies that a person names; only what belongs to the run is read on request.

        Raises:
            ValueError: it is not there, or lies elsewhere.
        """
        homes = (self.run.path.resolve(), Path(self.config.data.index).resolve().parent)
        path = homes[0].joinpath(str(value)).resolve()
        if not path.is_file() or not any(path.is_relative_to(home) for home in homes):
            raise ValueError(
                f"distances must name a prototypes file below {homes[0]} or {homes[1]}; got {value!r}. "
                "`tempera score` writes one beside the index."
            )
        return str(path)

    def _resting(self) -> bool:
        self.metrics.update()
        return self.metrics.is_paused or self.run.pause_request.exists()

    def _asked_for(self) -> dict[str, bool]:
        self.metrics.update()
        alive = not self.parts.read_only
        return {
            "paused": alive and self.metrics.is_paused,
            "pausing": alive and self.run.pause_request.exists(),
            "stopping": alive and self.run.stop_request.exists(),
        }

    def _state(self) -> dict[str, Any]:
        selection = dict(finite(self.parts.selection.state()))
        asked = self._asked_for()
        speed = None if self.parts.read_only else self._consumption.seconds_per_step()
        progress = self._progress(speed)
        steps = self._bound_steps(int(selection["next_step"]) - progress["step"])
        return {
            "run": {
                "name": self.config.name,
                "run_dir": str(self.run.path.resolve()),
                "method": self.config.train.method,
                "started": self._started_s,
                "status": self._status(asked),
            },
            "progress": progress,
            "selection": selection,
            "fleet": self.loaders(),
            "control": {
                "version": selection["control_version"],
                "next_window": selection["next_window"],
                "next_step": selection["next_step"],
                "window_steps": self.config.train.window_steps,
                "bound_steps": steps,
                "bound_s": None if speed is None else steps * speed,
                "policies": self._policies,
            },
            "latency": self.latency.summary(),
            "bad_samples": self.bad_samples(0)["total"],
            "paused": asked["paused"],
            "pausing": asked["pausing"],
            "read_only": self.parts.read_only,
            "time": time.time(),
        }

    def _bound_steps(self, drawn_ahead: int) -> int:
        """Most steps until a change lands; a trainer that went back to a checkpoint first takes what is drawn."""
        steps = bound_steps(self.config.train.window_steps, ranks=self.config.trainers.workers)
        return max(steps, drawn_ahead)

    def _status(self, asked: dict[str, bool]) -> str:
        if self.parts.read_only:
            return "over"
        return "stopping" if asked["stopping"] else "paused" if asked["paused"] else "running"

    def _progress(self, seconds_a_step: float | None) -> dict[str, Any]:
        last, total = self.metrics.last_with_loss(), self.config.train.total_steps
        step = max(int(last.get("step", 0)), self._consumption.step or 0)
        return {
            "step": step,
            "total_steps": total,
            "eta_s": None if seconds_a_step is None else (total - step) * seconds_a_step,
            **{name: last.get(name) for name in ("images_per_s", "data_wait", "loss")},
        }

    def _loaders(self) -> dict[str, Any]:
        if self.parts.fleet is None:
            return {"desired": 0, "author": "", "reason": "the run is over", "members": [], "scalable": False}
        status = self.parts.fleet.status()
        return {
            "desired": status["size"],
            "author": status["author"],
            "reason": status["reason"],
            "members": [finite(member(loader)) for loader in status["loaders"]],
            "scalable": self.parts.scalable,
        }

    def _follow(self) -> None:
        """Measure what lands, and write it into the log; the run goes on whatever happens here."""
        while not self.over.wait(FOLLOW_S):
            try:
                for change, latency_s in self.latency.match(self._consumption.follow()):
                    at_step = self._consumption.step_at(change.acknowledged_s)
                    self.parts.selection.record(_landed_event(change, latency_s, at_step))
            except Exception:
                log.warning("control latency was not measured for a moment", exc_info=True)


def _landed_event(change: PendingChange, latency_s: float, at_step: int | None) -> Event:
    steps = "" if at_step is None else f", {change.step - at_step} steps after it was taken"
    message = f"{change.what}: first batch at step {change.step}{steps}"
    return Event(kind=LATENCY_KIND, author=AUTHOR, message=message, value=round(latency_s, 4))


def _told(asked: ControlRequest, conflict: VersionConflict, winner: dict[str, Any] | None) -> str:
    """One line for whoever came second."""
    head = f"expected_version must be the current control version ({conflict.current}); got {asked.expected_version}. "
    if winner is None:
        return f"{head}Look again and decide whether your change still applies."
    value = "" if winner["value"] is None else f" {winner['value']}"
    why = f" ({winner['reason']})" if winner["reason"] else ""
    return (
        f"{head}{winner['author']} was faster: {winner['kind']}{value}{why}, in force from window {winner['window']}. "
        "Look again and decide whether your change still applies."
    )
