"""History: the sample table at one position of the log.

Scores merge in any order, but a selection round is a cut in time: it must see exactly the reports up to the one that
its entry names. The live service, recovery and replay fold the log in here, so they agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.errors import CorruptLog
from scoring.log.runlog import RunLog
from scoring.log.snapshots import Packed, Position
from scoring.policies import SUBSET_KINDS, parse_policy
from scoring.prototypes import fingerprint_of, load_distances
from scoring.records import LogEntry
from scoring.table.samples import SampleTable
from scoring.table.scores import ScoreReport
from scoring.table.weights import WeightKey, WeightTable


class History:
    """The sample table as the log is read into it. Takes no lock: the selection's table lock is held."""

    def __init__(self, table: SampleTable, user_policies: Iterable[str] = ()) -> None:
        """Begin at the start of the log, with the policies that the run's configuration adds."""
        self.table, self._user_policies = table, tuple(user_policies)
        self.distances_through = 0
        """Log sequence of the entry whose distances are in use; 0 for those of the configuration."""
        self.position = Position(next_window=0, scores_through=0, rounds_through=0)
        self._weights: WeightTable | None = None

    def weigh(self, key: WeightKey) -> WeightTable:
        """Return the weight table of a key.

        The table must stand at the key's sequences: `weigh_now` fills in the present ones, a replay follows the log.

        Raises:
            ValueError: if the policy's weights are not usable.
        """
        # The last table is kept, for most windows have the key of the one before.
        if self._weights is None or self._weights.key != key:
            self._weights = self.table.weigh(key, parse_policy(key.policy, self._user_policies))
        return self._weights

    def weigh_now(self, key: WeightKey) -> WeightTable:
        """Return the weight table of a key on the table as it is now; ValueError if the weights are not usable."""
        # The key notes only what its policy reads: a report that cannot change the weights must not cost a weighing.
        plan = parse_policy(key.policy, self._user_policies)
        distances = self.distances_through if plan.reads_distances else 0
        here = replace(
            key,
            scores_through=self.position.scores_through if plan.reads_scores else 0,
            rounds_through=self.position.rounds_through if plan.reads_rounds else distances,
        )
        return self.weigh(here)

    def restore(self, position: Position, packed: Packed, log: RunLog) -> None:
        """Begin at a snapshot instead of at the start; distances are not in it, but in their file."""
        # The last ones before the snapshot: it was made under them, and the table's own are the configuration's.
        for entry in reversed(log.table_changes()):
            if entry.kind == "distances" and entry.sequence <= position.rounds_through:
                self.apply(entry, log)
                break
        self.table.unpack(*packed)
        self.position = position

    def merge_scores(self, reports: Iterable[tuple[int, ScoreReport]]) -> None:
        """Take reports, each with its log sequence; they must be the next ones of the log."""
        for sequence, report in reports:
            self.table.score_table(report.kind).merge(report)
            self.position = replace(self.position, scores_through=sequence)

    def apply(self, entry: LogEntry, log: RunLog) -> None:
        """Make a change of the table that is in the log; all scores that it reads have been merged.

        Raises:
            CorruptLog: if the entry is damaged, or its file has changed.
        """
        if entry.kind == "round":
            cutoff = _detail(entry, threshold=float, last_id=int)
            if entry.value not in SUBSET_KINDS or entry.value not in self.table.scored():
                raise CorruptLog(f"log entry {entry.sequence} must close a round of known scores; it does not.")
            self.table.close_round(str(entry.value), cutoff["threshold"], cutoff["last_id"])
            self.position = replace(self.position, rounds_through=entry.sequence)
            return
        described = _detail(entry, path=str, digest=str)
        path = (log.path.parent if log.path else Path()) / described["path"]
        if not path.is_file() or _digest(path) != described["digest"]:
            raise CorruptLog(
                f"the distances of log entry {entry.sequence} must lie in {path} as they did; they do not. Restore it."
            )
        self.table.swap_distances(load_distances(path, self.table.num_samples))
        self.note_distances(entry)

    @contextmanager
    def trying_distances(self, path: Path, log: RunLog, *, fingerprint: str) -> Iterator[dict[str, Any]]:
        """Use the distances of a file, and again those from before if the block fails; yield the detail of its entry.

        The path in the detail is relative where the file lies in the log's directory, so that a run can be moved.

        Raises:
            ValueError: if it is not a file of `tempera score` of this data; the table is as it was.
        """
        if not path.is_file():
            raise ValueError(f"distances must name a file of `tempera score` that the service reaches; got {path}.")
        theirs = fingerprint_of(path)
        if fingerprint and theirs and fingerprint != theirs:
            raise ValueError(
                f"distances must be of the run's data ({fingerprint}); {path} is of {theirs}. Score its index."
            )
        before = self.table.swap_distances(load_distances(path, self.table.num_samples))
        try:
            whole, home = path.absolute(), log.path.parent.absolute() if log.path else None
            kept = whole.relative_to(home) if home and whole.is_relative_to(home) else whole
            yield {"path": str(kept), "digest": _digest(whole), "scores_through": self.position.scores_through}
        except BaseException:
            self.table.swap_distances(before)
            raise

    def note_distances(self, entry: LogEntry) -> None:
        """Note that the distances of an entry are in use."""
        self.distances_through = entry.sequence
        self.position = replace(self.position, rounds_through=entry.sequence)

    def count_draws(self, index: int, ids: NDArray[np.int64]) -> None:
        """Count the draws of the next window.

        Args:
            index: its number.
            ids: [n] samples drawn, spares not among them.

        Raises:
            CorruptLog: if one is of no sample.
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.table.num_samples:
            raise CorruptLog(f"window {index} must draw samples below {self.table.num_samples}; it does not.")
        self.table.counts.add(ids)
        self.position = replace(self.position, next_window=index + 1)

    def follow(self, log: RunLog, *, scores_through: int | None = None, rounds_through: int | None = None) -> None:
        """Fold in scores and changes of the table from the log, up to these sequences or to its end."""
        # Before each change, exactly the scores that it saw; the live service may have merged later ones only after it.
        for entry in log.table_changes(after=self.position.rounds_through):
            cut = _detail(entry, scores_through=int)["scores_through"]
            wanted = rounds_through is None or entry.sequence <= rounds_through
            if not wanted and (scores_through is None or scores_through <= cut):
                break
            self._follow_scores(log, cut)
            self.apply(entry, log)
        self._follow_scores(log, scores_through)

    def _follow_scores(self, log: RunLog, through: int | None) -> None:
        for sequence, report in log.reports(after=self.position.scores_through, through=through):
            if len(report.ids) and not 0 <= report.ids.min() <= report.ids.max() < self.table.num_samples:
                raise CorruptLog(f"score report {sequence} must be of samples below {self.table.num_samples}.")
            self.merge_scores([(sequence, report)])


def _detail(entry: LogEntry, **kinds: type) -> dict[str, Any]:
    """Return these fields of an entry's detail; CorruptLog if one is missing or of another type."""
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
