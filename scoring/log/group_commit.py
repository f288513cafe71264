"""ScoreIntake: score reports on their way into the log, many writers to one commit.

A report waits while a commit is under way; the next commit takes all that wait. So the rate does not hang on the disk's
latency, and every report is on disk when its writer goes on. What is committed is handed to the table later, at a
window's border, in the order of the log.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future

from scoring.log.runlog import RunLog
from scoring.table.scores import ScoreReport

BACKLOG_LIMIT = 1 << 22
"""Scores committed but not merged after which a merge is due: 4 M."""


class ScoreIntake:
    """Takes reports from any thread."""

    def __init__(self, runlog: RunLog) -> None:
        self._log = runlog
        self._waiting: list[tuple[ScoreReport, Future[None]]] = []
        self._committed: list[tuple[int, ScoreReport]] = []
        self._size = 0
        self._door, self._commit = threading.Lock(), threading.Lock()

    def submit(self, report: ScoreReport) -> None:
        """Write a report; on disk when this returns.

        Raises:
            LogUnavailable: if the disk does not take it.
        """
        done: Future[None] = Future()
        with self._door:
            self._waiting.append((report, done))
        with self._commit:
            if not done.done():
                self._commit_waiting()
        done.result()

    def refill(self, reports: Iterable[tuple[int, ScoreReport]]) -> None:
        """Take reports that are in the log from before and are to be merged later; before the first `submit`."""
        self._committed = list(reports)
        self._size = sum(len(report.ids) for _, report in self._committed)

    @property
    def merge_is_due(self) -> bool:
        """Whether so much is committed that it should be taken before the next window."""
        return self._size > BACKLOG_LIMIT

    def take(self) -> list[tuple[int, ScoreReport]]:
        """What was committed since the last call, in the order of the log."""
        with self._commit:
            taken, self._committed, self._size = self._committed, [], 0
        return taken

    def _commit_waiting(self) -> None:
        with self._door:
            batch, self._waiting = self._waiting, []
        try:
            sequences = self._log.append_reports([report for report, _ in batch])
        except BaseException as error:
            for _, done in batch:
                done.set_exception(error)
            return
        for (report, done), sequence in zip(batch, sequences, strict=True):
            if sequence:
                self._committed.append((sequence, report))
                self._size += len(report.ids)
            done.set_result(None)
