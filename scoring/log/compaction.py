"""Housekeeping of a run's log: snapshots to recover from, old draws dropped, scores that nothing needs trimmed."""

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


class Housekeeping:
    """Not locked: the selection's drawing lock is held."""

    def __init__(self, runlog: RunLog, history: History, config: SelectionConfig) -> None:
        self._log, self._history, self._config = runlog, history, config
        self._snapshots = None if runlog.path is None else SnapshotStore(runlog.path)

    def restore(self) -> None:
        """Begin the history at the newest snapshot that fits it."""
        newest = self._snapshots.load() if self._snapshots else None
        if newest is None:
            return
        if self._history.fits(newest[1]):
            self._history.restore(*newest, self._log)
        else:
            log.warning("the snapshot is not of this table; the log alone is read")

    def snapshot(self) -> None:
        """Write the sample table beside the log, so that recovery begins there."""
        assert self._snapshots is not None, "a log in memory has no snapshots"
        self._snapshots.save(self._history.position, self._history.table.each(lambda part: part.pack()))

    def after_window(self, index: int) -> None:
        """Every so many windows, what there is to do. A disk that is full is not this run's end."""
        if self._snapshots is None or (index + 1) % self._config.snapshot_windows:
            return
        try:
            self.snapshot()
            self._log.drop_draws(before=index + 1 - self._config.kept_windows)
            self._trim_scores()
        except (OSError, LogUnavailable) as error:
            log.warning("no snapshot at window %d: %s. The log alone is enough; recovery takes longer", index, error)

    def _trim_scores(self) -> None:
        """Keep of the score reports what holds now, so that a log does not grow with them for ever.

        Not once a window or a round has read scores: a replay needs them as they were then.
        """
        table = self._history.table
        most = TRIM_FACTOR * max(1, len(table.scored())) * table.num_samples
        if self._log.stored_scores() > most and not self._log.scores_were_read():
            self._log.trim_reports(through=self._history.position.scores_through, keep=table.held)
