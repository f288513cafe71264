"""RunService: everything that the API answers and does about one run. Each public method is one route (see `routes`).

Reading: figures are put together from the selection, the loaders and the files that the trainer writes, and cached for
a moment, so that any number of watchers cost what one does. Changing: the selection writes a change into the log before
it answers. `server` feeds `latency` from `consumption` while the run is served.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Query

from deploy.api.backend import RunBackend, WrongState
from deploy.api.changes import ControlRequest, RunRequest, ScaleRequest
from deploy.api.latency import Consumption, LatencyMeter, PendingChange, bound_steps
from deploy.api.line_index import LineIndex
from deploy.api.log_index import QUIET_KINDS, LogIndex, finite, initial_in_force
from deploy.api.models import Limit, SampleId, Top, TopBy
from deploy.api.samples import Samples
from deploy.api.ttl_cache import TtlCache
from deploy.observe.run_log import plain_entry
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from scoring import POLICIES, Control, Event, VersionConflict
from scoring.policies import DIRECTION

STATE_S, VIEW_S = 0.25, 2.0
"""Seconds that a state, and a view of the whole table, are cached."""
SCHEDULE_POINTS = 200
Act = Literal["pause", "resume", "stop"]


class Conflict(Exception):
    """A change that came after another one: `version` is the control version now, `winner` the log entry of the first.

    There is no winner where the expected version never was.
    """

    def __init__(self, expected: int | None, version: int, winner: dict[str, Any] | None) -> None:
        faster = ""
        if winner is not None:
            value = "" if winner["value"] is None else f" {winner['value']}"
            why = f" ({winner['reason']})" if winner["reason"] else ""
            change = f"{winner['kind']}{value}{why}, in force from window {winner['window']}"
            faster = f"{winner['author']} was faster: {change}. "
        super().__init__(
            f"expected_version must be the current control version ({version}); got {expected}. {faster}Look again "
            "and decide whether your change still applies."
        )
        self.version, self.winner = version, winner


class RunService:
    """One run. Safe to use from several threads; `server.serving` follows it and closes its samples."""

    def __init__(self, config: RunConfig, run: RunDir, backend: RunBackend) -> None:
        self.config, self.run, self.backend = config, run, backend
        self.metric_lines = LineIndex(run.metrics)
        self.latency = LatencyMeter()
        self.consumption = Consumption(run.consumed)
        self._cache = TtlCache()
        self._started_s = time.time()
        names = (*POLICIES, *config.curriculum.user_policies, config.curriculum.policy)
        # A policy may be a product, as in "pass*hard": it has a temperature where one of its factors has.
        self._policies = {name: any(factor in DIRECTION for factor in name.split("*")) for name in names}
        self.log_index = LogIndex(lambda **bounds: backend.log(None, **bounds), initial=initial_in_force(config))
        self.samples = Samples(config, file=lambda: self.log_index.update().distances)
        self.num_readers = 0
        """Readers of the event stream; counted in the server's only thread."""
        self.over = threading.Event()
        """Set when the run ends."""

    # -- reading ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the run at a glance: progress, the values in force, loaders, where a change would land and when."""
        return self._cache.get("state", STATE_S, self._state)

    def metrics(
        self, since: Annotated[int, Query(ge=0)] = 0, points: Annotated[int, Query(ge=1, le=5000)] = 500
    ) -> dict[str, Any]:
        """Return logged steps from step `since` on: at most `points` rows with a loss, and the rows without one."""
        rows = self.metric_lines.choose(since=since, points=points)
        return {"rows": rows, "total": self.metric_lines.update()}

    def curve(self) -> dict[str, Any]:
        """Return the effective size over the steps: the values that were in force, and those of the schedule."""
        total, window_steps = self.config.train.total_steps, self.config.train.window_steps
        schedule = self.config.curriculum.schedule_by_progress()
        # A schedule's value is used once per window; points inside a window would never be in force.
        stride = window_steps * max(1, -(-total // (window_steps * SCHEDULE_POINTS)))
        scheduled = [[step, schedule(step / total)] for step in (*range(0, total, stride), total)]
        manual = bool(self.state()["selection"]["manual"])
        past = self._cache.get("curve", VIEW_S / 4, self.log_index.curve)
        return {"past": past, "scheduled": scheduled, "manual": manual, "window_steps": window_steps}

    def distribution(self, bins: Annotated[int, Query(ge=1, le=512)] = 64) -> dict[str, Any]:
        """Return the histogram of the distances, and where the draws fall in it."""
        return self._view("distribution", bins=bins)

    def solve(
        self,
        effective_size: Annotated[float | None, Query(gt=0, le=1, allow_inf_nan=False)] = None,
        temperature: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
        policy: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
    ) -> dict[str, Any]:
        """Return the values that a change of one of the three would put in force."""
        asked = {"effective_size": effective_size, "temperature": temperature, "policy": policy}
        given = {kind: value for kind, value in asked.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(asked)}; got {len(given)}.")
        ((kind, value),) = given.items()
        return self._view("forecast", kind=kind, value=value)

    def summary(self, top: Limit = 10) -> dict[str, Any]:
        """Return the sample table at a glance: the most probable samples, effective sample size, entropy."""
        return self._view("summary", top=top)

    def top(self, by: TopBy = "probability", k: Top = 24) -> dict[str, Any]:
        """Return the samples with the highest probability, draws or score, or the prototypes."""
        if by == "prototypes":
            found = self._view("samples", ids=tuple(self.samples.prototype_ids(k)))
        else:
            found = self._view("top", by=by, k=k)
        return {"by": by, "samples": self.samples.describe(found["samples"])}

    def sample(self, sample_id: SampleId) -> dict[str, Any]:
        """Return the facts known about one sample."""
        self.samples.require(sample_id)
        return self.samples.describe(self._view("samples", ids=(sample_id,))["samples"])[0]

    def scores(self) -> dict[str, Any]:
        """Return score quantiles by kind, and the selection rounds."""
        rounds = self._cache.get("rounds", VIEW_S, lambda: self.log_index.update().rounds)
        return {**self._view("scores"), "rounds": rounds}

    def loaders(self) -> dict[str, Any]:
        """Return the loader workers, their desired number, who asked for it and why."""
        return self._cache.get("loaders", STATE_S, self.backend.loaders)

    def entries(
        self, limit: Limit = 50, before: Annotated[int | None, Query(ge=1)] = None, changes: bool = False
    ) -> dict[str, Any]:
        """Return who changed what, and from which window on: the newest entries, or those before a sequence number.

        With `changes` the schedule's entries and the bad samples are left out.
        """
        # One more than wanted tells whether there are older ones.
        found = self.backend.log(limit + 1, before=before, without=QUIET_KINDS if changes else ())
        return {"entries": [plain_entry(entry) for entry in found[-limit:]], "more": len(found) > limit}

    # -- changing -----------------------------------------------------------------------------------------------------

    def control(self, request: ControlRequest, arrived_s: float) -> dict[str, Any]:
        """Set or release the effective size, the temperature, the policy; the reply names the first window under it.

        Raises:
            ValueError: out of range, or a file of distances that does not belong to the run.
            Conflict: another change came first.
            WrongState: the run is over.
        """
        self._require_alive()
        if request.kind == "distances":
            # Only files that belong to the run: a caller must not make this process read any other.
            homes = (self.run.path.resolve(), Path(self.config.data.index).resolve().parent)
            file = homes[0].joinpath(str(request.value)).resolve()
            if not file.is_file() or not any(file.is_relative_to(home) for home in homes):
                raise ValueError(
                    f"distances must name a prototypes file below {homes[0]} or {homes[1]}; got {request.value!r}. "
                    "`tempera score` writes one beside the index."
                )
            request = request.model_copy(update={"value": str(file)})
        try:
            reply = self.backend.selection.control(Control(**request.model_dump()))
        except VersionConflict as conflict:
            winner = self.log_index.update().last_control
            raise Conflict(request.expected_version, conflict.current, winner) from None
        self._cache.clear()
        # A paused run measures nothing: the latency would be how long a person pauses it.
        if not (self._requests()["paused"] or self.run.pause_request.exists()):
            what = f"{request.kind} by {request.author}"
            self.latency.expect(
                PendingChange(arrived_s=arrived_s, acknowledged_s=time.time(), step=reply.step, what=what)
            )
        return dict(finite(asdict(reply)))

    def scale(self, request: ScaleRequest) -> dict[str, Any]:
        """Set the desired number of loader workers.

        Raises:
            WrongState: the run is over, or its loaders are part of one process.
        """
        self._require_alive()
        assert self.backend.fleet is not None, "a run that is alive has loaders"
        reply = self.backend.fleet.scale(request.loaders, author=request.author, reason=request.reason)
        self._cache.clear()
        return asdict(reply)

    def act(self, kind: Act, request: RunRequest) -> dict[str, bool]:
        """Pause the trainers before their next step, let them continue, or make the run write a checkpoint and end.

        Raises:
            WrongState: the run is over.
        """
        self._require_alive()
        # Into the log first: an act without an author must not happen.
        self.backend.selection.record(Event(kind=kind, author=request.author, message=request.reason))
        if kind == "resume":
            self.run.pause_request.unlink(missing_ok=True)
        else:
            (self.run.pause_request if kind == "pause" else self.run.stop_request).touch()
        self.latency.forget()
        self._cache.clear()
        return self._requests()

    def export(self, request: RunRequest) -> dict[str, Any]:
        """Write the sample table as Parquet into the run's report folder."""
        self._require_alive()
        path = self.run.report.resolve() / "samples.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return {"path": str(path), **self.backend.selection.view("export", path=str(path))}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return a view of `scoring.views`, at most VIEW_S old: it reads the whole table."""
        key = (name, *sorted(arguments.items()))
        return self._cache.get(key, VIEW_S, lambda: finite(self.backend.selection.view(name, **arguments)))

    def _requests(self) -> dict[str, bool]:
        # "pausing" is the request; the trainer writes "paused" when it has stopped before a step.
        self.metric_lines.update()
        alive = not self.backend.read_only
        return {
            "paused": alive and self.metric_lines.is_paused,
            "pausing": alive and self.run.pause_request.exists(),
            "stopping": alive and self.run.stop_request.exists(),
        }

    def _require_alive(self) -> None:
        if self.backend.read_only:
            raise WrongState(f"this run is over and served for reading; `tempera resume {self.run.path}` continues it.")

    def _state(self) -> dict[str, Any]:
        config, over = self.config, self.backend.read_only
        selection = dict(finite(self.backend.selection.state()))
        requests = self._requests()
        received, step_s = self.consumption.progress()
        last, total = self.metric_lines.last_with_loss(), config.train.total_steps
        # Metrics are logged every few steps; what the trainer consumed is newer.
        step = max(int(last.get("step", 0)), received)
        # A trainer that went back to a checkpoint takes all windows that are drawn before it reaches a new one.
        steps = bound_steps(config.train.window_steps, ranks=config.trainers.workers)
        steps = max(steps, int(selection["next_step"]) - step)
        running = "stopping" if requests["stopping"] else "paused" if requests["paused"] else "running"
        return {
            "run": {
                "name": config.name,
                "run_dir": str(self.run.path.resolve()),
                "method": config.train.method,
                "started": self._started_s,
                "status": "over" if over else running,
            },
            "progress": {
                "step": step,
                "total_steps": total,
                "eta_s": None if step_s is None else (total - step) * step_s,
                **{name: finite(last.get(name)) for name in ("images_per_s", "data_wait", "loss")},
            },
            "selection": selection,
            "fleet": self.loaders(),
            "control": {
                "version": selection["control_version"],
                "next_window": selection["next_window"],
                "next_step": selection["next_step"],
                "window_steps": config.train.window_steps,
                "bound_steps": steps,
                "bound_s": None if step_s is None else steps * step_s,
                "policies": self._policies,
            },
            "latency": self.latency.summary(),
            "bad_samples": self.log_index.bad_samples(0)["total"],
            "paused": requests["paused"],
            "pausing": requests["pausing"],
            "read_only": over,
            "time": time.time(),
        }
