"""Follow the files of a run (metrics.jsonl, run.sqlite, report/*.png) and send new lines and pictures to the trackers.

The files are the only source, so the training code knows of no tracker. A resumed run cuts metrics.jsonl back to its
checkpoint by replacing the file: everything is then sent again from the first line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
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
"""Groups of metrics in TensorBoard; `nn_...` is under evaluation, every other metric under loss."""
STEP_OF_PICTURE = re.compile(r"step-(\d+)(?:-(\w+))?$")


@contextmanager
def following(run: RunDir, trackers: Sequence[Tracker], *, poll_s: float = POLL_S) -> Iterator[None]:
    """Send a run's files to trackers until the block ends, to the end of the files; then close the trackers."""
    follower = Follower(run, trackers)
    trouble = "the trackers could not be updated; the values stay in metrics.jsonl"
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
    """Position in a run's files up to which its trackers have been updated."""

    def __init__(self, run: RunDir, trackers: Sequence[Tracker]) -> None:
        self._run, self._trackers = run, trackers
        self._file: tuple[int, int] = (0, 0)  # inode of metrics.jsonl, bytes read of it
        self._sequence = 0  # last log entry sent
        self._pictures: dict[Path, float] = {}  # time of change of each picture sent

    def poll(self) -> None:
        """Send the metrics, the values in force and the pictures that are new since the last call."""
        for line in self._new_lines():
            values = {}
            for name, value in line.items():
                # A bool is an int in Python; `paused` is a state and no curve.
                if name not in NOT_SCALARS and isinstance(value, int | float) and not isinstance(value, bool):
                    group = GROUPS.get(name) or ("evaluation" if name.startswith("nn_") else "loss")
                    values[f"{group}/{name}"] = float(value)
            for tracker in self._trackers:
                tracker.scalars(line["step"], line["time"], values)
        if self._run.log.is_file():  # not yet, in a run that has just started
            self._send_controls()
        for path in sorted(self._run.report.glob("*.png")):
            # A page that is written again draws its curves again, into the same files.
            changed = path.stat().st_mtime
            if self._pictures.get(path) == changed:
                continue
            self._pictures[path] = changed
            step = STEP_OF_PICTURE.search(path.stem)
            name = (step[2] or "pictures") if step else path.stem
            for tracker in self._trackers:
                tracker.picture(f"report/{name}", int(step[1]) if step else 0, path)

    def _new_lines(self) -> list[dict[str, Any]]:
        """Return the complete lines after the last one seen; all of them when the file was replaced."""
        try:
            inode, seen = self._run.metrics.stat().st_ino, self._file[1]
        except FileNotFoundError:
            return []
        # A resume replaces the file and cuts it: positions in the old one mean nothing in the new one.
        if inode != self._file[0]:
            seen = self._sequence = 0
            self._pictures.clear()
            for tracker in self._trackers:
                tracker.restart()
        with self._run.metrics.open("rb") as file:
            file.seek(seen)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # the trainer may be in the middle of a line
        self._file = (inode, seen + len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def _send_controls(self) -> None:
        """Send effective size and temperature, which are in the run's log and not in its metrics."""
        for entry in read_entries(self._run.log, after=self._sequence):
            self._sequence = entry.sequence
            setting = {"effective size": entry.effective_size, "temperature": entry.temperature}
            known = {f"data/{name}": value for name, value in setting.items() if value is not None}
            if known and entry.in_force:  # a schedule's value is only recorded while a person's holds
                for tracker in self._trackers:
                    tracker.scalars(entry.step, entry.time, known)
