"""Compaction of a run's log: snapshots to recover from, old draws dropped, scores that newer ones replaced trimmed."""

from __future__ import annotations

import logging

from scoring.config import SelectionConfig
from scoring.errors import LogUnavailable
from scoring.log.history import History
from scoring.log.runlog import RunLog
from scoring.log.snapshots import SnapshotStore

log = logging.getLogger(__name__)

TRIM_FACTOR = 2
"""Scores in the log, as a multiple of those that can hold, above which it is trimmed: then most can go."""


class Compaction:
    """Keeps the log small and quick to recover. Takes no lock: the selection's table lock is held."""

    def __init__(self, runlog: RunLog, history: History, config: SelectionConfig) -> None:
        self._log, self._history, self._config = runlog, history, config
        self._snapshots = None if runlog.path is None else SnapshotStore(runlog.path)

    def restore(self) -> None:
        """Begin the history at the newest snapshot, if there is one that fits its table."""
        newest = self._snapshots.load() if self._snapshots else None
        if newest is None:
            return
        position, packed = newest
        if self._history.table.accepts(*packed):
            self._history.restore(position, packed, self._log)
        else:
            log.warning("the snapshot is not of this table; the log alone is read")

    def snapshot(self) -> None:
        """Write the sample table beside the log, so that recovery begins there."""
        assert self._snapshots is not None, "a log in memory has no snapshots"
        self._snapshots.save(self._history.position, self._history.table.pack())

    def after_window(self, index: int) -> None:
        """Compact the log if this window is the last of `snapshot_windows`; a full disk only costs the snapshot."""
        if self._snapshots is None or (index + 1) % self._config.snapshot_windows:
            return
        table = self._history.table
        try:
            self.snapshot()
            self._log.drop_draws(before=index + 1 - self._config.kept_windows)
            # Once a window or a round has read scores, all stay: a replay needs them as they were then.
            most = TRIM_FACTOR * max(1, len(table.scored())) * table.num_samples
            if self._log.stored_scores() > most and not self._log.scores_were_read():
                self._log.trim_reports(
                    through=self._history.position.scores_through,
                    keep=lambda report: table.score_tables[report.kind].held(report),
                )
        except (OSError, LogUnavailable) as error:
            log.warning("no snapshot at window %d: %s. The log alone is enough; recovery takes longer", index, error)
