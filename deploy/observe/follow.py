"""Follows what a run writes, metrics.jsonl, run.sqlite and report/*.png, and hands it to the trackers.

The files are the truth, so nothing that trains knows of trackers. A resumed run cuts metrics.jsonl back to its
checkpoint by replacing the file: then everything is handed over again from the first line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.observe.periodic import periodic
from deploy.observe.trackers import Tracker
from deploy.runs.rundir import RunDir
from scoring import read_entries

log = logging.getLogger(__name__)

POLL_S = 2.0
JOIN_S = 60.0
NOT_SCALARS = ("step", "time")
GROUPS = {"images_per_s": "speed", "data_wait": "speed", "lr": "optimizer", "grad_norm": "optimizer", "version": "data"}
"""Where a metric stands in TensorBoard; `nn_...` is under evaluation, everything else is a loss."""
STEP_OF_PICTURE = re.compile(r"step-(\d+)(?:-(\w+))?$")


@contextmanager
def following(run: RunDir, trackers: Sequence[Tracker], *, poll_s: float = POLL_S) -> Iterator[None]:
    """Tell trackers what a run writes for as long as the block lasts, to the end of its files; then close them."""
    follower = Follower(run, trackers)
    trouble = "the trackers could not be told what is new; it stays in metrics.jsonl"
    try:
        with periodic(follower.poll, every_s=poll_s, name="trackers", trouble=trouble, join_s=JOIN_S):
            yield
    finally:
        for tracker in trackers:
            try:
                tracker.close()
            except Exception:  # a service that is away must not fail a run that is done
                log.warning("%s could not be closed", type(tracker).__name__, exc_info=True)


class Follower:
    """What of a run its trackers know already."""

    def __init__(self, run: RunDir, trackers: Sequence[Tracker]) -> None:
        self._run, self._trackers = run, trackers
        self._file: tuple[int, int] = (0, 0)
        self._sequence = 0
        self._pictures: dict[Path, float] = {}

    def poll(self) -> None:
        """Hand over what is new."""
        for line in self._new_lines():
            values = {tag(name): float(value) for name, value in line.items() if _is_scalar(name, value)}
            self._tell(line["step"], line["time"], values)
        self._new_controls()
        self._new_pictures()

    def _tell(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.scalars(step, time_s, values)

    def _new_lines(self) -> list[dict[str, Any]]:
        """The whole lines after the last one seen; all of them when the file is another one."""
        try:
            inode, seen = self._run.metrics.stat().st_ino, self._file[1]
        except FileNotFoundError:
            return []
        if inode != self._file[0]:
            seen = self._sequence = 0
            self._pictures.clear()
            for tracker in self._trackers:
                tracker.restart()
        with self._run.metrics.open("rb") as file:
            file.seek(seen)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._file = (inode, seen + len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def _new_controls(self) -> None:
        """Effective size and temperature, which stand in the run's log."""
        if not self._run.log.is_file():
            return
        for entry in read_entries(self._run.log, after=self._sequence):
            self._sequence = entry.sequence
            law = {"effective size": entry.effective_size, "temperature": entry.temperature}
            known = {f"data/{name}": value for name, value in law.items() if value is not None}
            if known and entry.in_force:
                self._tell(entry.step, entry.time, known)

    def _new_pictures(self) -> None:
        for path in sorted(self._run.report.glob("*.png")):
            changed = path.stat().st_mtime
            if self._pictures.get(path) == changed:
                continue
            self._pictures[path] = changed
            step = STEP_OF_PICTURE.search(path.stem)
            name = (step[2] or "pictures") if step else path.stem
            for tracker in self._trackers:
                tracker.picture(f"report/{name}", int(step[1]) if step else 0, path)


def tag(name: str) -> str:
    """Where TensorBoard shows a metric: group/name."""
    group = GROUPS.get(name) or ("evaluation" if name.startswith("nn_") else "loss")
    return f"{group}/{name}"


def _is_scalar(name: str, value: object) -> bool:
    return name not in NOT_SCALARS and isinstance(value, int | float) and not isinstance(value, bool)
