"""Folding the log into the sample table: which scores, rounds and distances have been taken, in the order of the log.

Scores merge in any order, but a round is a cut in time: it must see exactly the reports up to the one that its entry
names. Live service, recovery and replay fold through here, so they agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.errors import CorruptLog
from scoring.log.runlog import RunLog
from scoring.log.snapshots import Packed, Position
from scoring.policies import SUBSET_KINDS
from scoring.records import LogEntry
from scoring.table.samples import SampleTable
from scoring.table.scores import ScoreReport


class History:
    """A sample table and how far it has followed the log."""

    def __init__(self, table: SampleTable) -> None:
        self.table = table
        self.distances_through = 0
        """Log sequence of the entry whose distances are in use; 0 for those of the configuration."""
        self.position = Position(next_window=0, scores_through=0, rounds_through=0)

    def fits(self, ranges: Sequence[Packed]) -> bool:
        """Whether a snapshot is of the same id ranges; the log alone serves where the table is cut otherwise now."""
        cut = [(part.first_id, part.num_samples) for part in self.table.ranges]
        if cut != [(facts["first_id"], facts["num_samples"]) for _, facts in ranges]:
            return False
        return all(part.accepts(*packed) for part, packed in zip(self.table.ranges, ranges, strict=True))

    def restore(self, position: Position, ranges: Sequence[Packed], log: RunLog) -> None:
        """Begin at a snapshot instead of at the start; distances are not in it, but in their file."""
        for entry in reversed(log.table_changes()):
            if entry.kind == "distances" and entry.sequence <= position.rounds_through:
                self.change(entry, log)
                break
        for part, (arrays, facts) in zip(self.table.ranges, ranges, strict=True):
            part.unpack(arrays, facts)
        self.position = position

    def merge(self, reports: Sequence[tuple[int, ScoreReport]]) -> None:
        """Take reports, the next ones of the log."""
        if reports:
            self.table.merge([report for _, report in reports])
            self._advance(scores_through=reports[-1][0])

    def close_round(self, entry: LogEntry) -> None:
        """Close a round whose scores have been merged, exactly."""
        border = _detail(entry, threshold=float, last_id=int)
        if entry.value not in SUBSET_KINDS or entry.value not in self.table.scored():
            raise CorruptLog(f"log entry {entry.sequence} must close a round of scores that are there; it does not.")
        self.table.close_round(str(entry.value), border["threshold"], border["last_id"])
        self._advance(rounds_through=entry.sequence)

    def change(self, entry: LogEntry, log: RunLog) -> None:
        """Make a change of the table that the log holds."""
        if entry.kind == "round":
            self.close_round(entry)
            return
        self.table.take_distances(checked_file(log, entry))
        self.taken(entry)

    def taken(self, entry: LogEntry) -> None:
        """Note that the distances of an entry are in use."""
        self.distances_through = entry.sequence
        self._advance(rounds_through=entry.sequence)

    def count(self, index: int, ids: NDArray[np.int64]) -> None:
        """Count the draws of the next window; CorruptLog if they are of no samples."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.table.num_samples:
            raise CorruptLog(f"window {index} must draw samples below {self.table.num_samples}; it does not.")
        self.table.count(ids)
        self._advance(next_window=index + 1)

    def follow(self, log: RunLog, *, scores_through: int | None = None, rounds_through: int | None = None) -> None:
        """Read scores and rounds of the log, up to these positions or to its end."""
        for entry in log.table_changes(after=self.position.rounds_through):
            cut = _detail(entry, scores_through=int)["scores_through"]
            wanted = rounds_through is None or entry.sequence <= rounds_through
            if not wanted and (scores_through is None or scores_through <= cut):
                break
            self._merge_from(log, cut)
            self.change(entry, log)
        self._merge_from(log, scores_through)

    def _merge_from(self, log: RunLog, through: int | None) -> None:
        for sequence, report in log.reports(after=self.position.scores_through, through=through):
            if len(report.ids) and not 0 <= report.ids.min() <= report.ids.max() < self.table.num_samples:
                raise CorruptLog(f"score report {sequence} must be of samples below {self.table.num_samples}.")
            self.merge([(sequence, report)])

    def _advance(self, **changes: int) -> None:
        self.position = replace(self.position, **changes)


def describe_file(log: RunLog, path: str | Path) -> dict[str, Any]:
    """What the log keeps of a file: its path, from the log's directory where it lies there, and a digest.

    Raises:
        FileNotFoundError: if there is none.
    """
    whole = Path(path).absolute()
    home = None if log.path is None else log.path.parent.absolute()
    inside = home is not None and whole.is_relative_to(home)
    return {"path": str(whole.relative_to(home)) if home and inside else str(whole), "digest": _digest(whole)}


def checked_file(log: RunLog, entry: LogEntry) -> Path:
    """The file that an entry names; CorruptLog if it is not what it was."""
    described = _detail(entry, path=str, digest=str)
    path = (log.path.parent if log.path else Path()) / str(described["path"])
    if not path.is_file() or _digest(path) != described["digest"]:
        raise CorruptLog(
            f"the distances of log entry {entry.sequence} must lie in {path} as they did; they do not. Restore it."
        )
    return path


def _detail(entry: LogEntry, **kinds: type) -> dict[str, Any]:
    """What an entry that changes the table keeps beside its value; CorruptLog if a field is missing."""
    try:
        detail = json.loads(entry.detail)
        found = {name: detail[name] for name in kinds}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptLog(f"the detail of log entry {entry.sequence} must be whole; it is not ({error!r}).") from error
    for name, kind in kinds.items():
        if isinstance(found[name], bool) or not isinstance(found[name], (int, kind) if kind is float else kind):
            raise CorruptLog(f"{name} of log entry {entry.sequence} must be {kind.__name__}; got {found[name]!r}.")
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
