"""GroupCommit: score reports on their way into the log, many writers to one commit.

A report waits while a commit is under way; the next commit takes all that wait. So the rate does not depend on the
disk's latency, and every report is on disk when its writer goes on. Committed reports are handed to the table later,
between two windows, in the order of the log.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future

from scoring.log.runlog import RunLog
from scoring.table.scores import ScoreReport

BACKLOG_LIMIT = 1 << 22
"""Scores committed but not merged above which they are merged before the next window, for they take memory: 4 M."""


class GroupCommit:
    """Takes reports from any thread."""

    def __init__(self, runlog: RunLog) -> None:
        self._log = runlog
        self._waiting: list[tuple[ScoreReport, Future[None]]] = []
        self._committed: list[tuple[int, ScoreReport]] = []
        self.backlog = 0
        """Scores that are committed and not merged."""
        self._queue_lock, self._commit_lock = threading.Lock(), threading.Lock()

    def submit(self, report: ScoreReport) -> None:
        """Write a report; on disk when this returns.

        Raises:
            LogUnavailable: if the disk does not take it.
        """
        done: Future[None] = Future()
        with self._queue_lock:
            self._waiting.append((report, done))
        with self._commit_lock:
            if not done.done():  # the commit that was under way until now may have taken it
                with self._queue_lock:
                    batch, self._waiting = self._waiting, []
                try:
                    sequences = self._log.append_reports([waiting for waiting, _ in batch])
                except BaseException as error:  # every writer of the batch must hear of it, not only this thread
                    for _, written in batch:
                        written.set_exception(error)
                else:
                    for (waiting, written), sequence in zip(batch, sequences, strict=True):
                        if sequence:  # 0: the same report was in the log before
                            self._committed.append((sequence, waiting))
                            self.backlog += len(waiting.ids)
                        written.set_result(None)
        done.result()

    def refill(self, reports: Iterable[tuple[int, ScoreReport]]) -> None:
        """Take reports that were in the log before and are to be merged later; before the first `submit`."""
        self._committed = list(reports)
        self.backlog = sum(len(report.ids) for _, report in self._committed)

    def take(self) -> list[tuple[int, ScoreReport]]:
        """Return the reports committed since the last call, each with its log sequence, in the order of the log."""
        with self._commit_lock:
            taken, self._committed, self.backlog = self._committed, [], 0
        return taken
