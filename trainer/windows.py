"""Between the training loop and the selection: the scheduled effective size goes out, scores come back.

Both are calls on a `scoring.SelectionPort`, in this process or behind an actor; no training step waits for a report.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scoring import SelectionPort, Window

log = logging.getLogger(__name__)

_QUEUED_WINDOWS = 4  # windows of scores that may wait for a slow selection before a further one is dropped
_CLOSE_TIMEOUT_S = 30.0
_MOST_FORGOTTEN = 66  # windows that a service hands out before it insists on writing them, and those on their way


class ScheduledWindows:
    """A source of windows whose requests carry the trainer's scheduled effective size.

    The size is a function of the window's number, so every rank, and a resumed run, sends the same. `schedule` gives
    it, in (0, 1], by the share of the run that is done; None leaves it to the selection.
    """

    def __init__(
        self,
        selection: SelectionPort,
        schedule: Callable[[float], float] | None,
        window_steps: int,
        total_steps: int,
    ) -> None:
        self.selection, self.schedule = selection, schedule
        self.window_steps, self.total_steps = window_steps, total_steps

    def window(self, index: int) -> Window:
        """Return window `index`; the schedule is read at the window's first step."""
        try:
            return self._request(index)
        except ValueError:
            # A service that died while its disk was full has lost the windows it could not write. Requested in order,
            # before anything is changed, they are drawn again as they were.
            for again in range(max(0, index - _MOST_FORGOTTEN), index + 1):
                window = self._request(again)
            return window

    def _request(self, index: int) -> Window:
        if self.schedule is None:
            return self.selection.window(index)
        progress = min(index * self.window_steps / self.total_steps, 1.0)
        return self.selection.window(index, effective_size=self.schedule(progress))


class ScoreReporter:
    """Collects the scores of a window's steps and sends them from its own thread.

    Use as a context manager. A failed report is logged and counted; training goes on, the next window brings newer
    scores.

    Args:
        selection: receives the reports; None drops the scores.
        producer: name of this rank; with a report's step it tells a repeated report from a new one.
        kind: name of the score, "bss" or "loss".
    """

    def __init__(self, selection: SelectionPort | None, *, producer: str, kind: str = "bss") -> None:
        self.failed = 0
        self._selection, self._producer, self._kind = selection, producer, kind
        self._ids: list[np.ndarray] = []
        self._values: list[Tensor] = []
        self._queue: queue.Queue[tuple[int, np.ndarray, Tensor] | None] = queue.Queue(_QUEUED_WINDOWS)
        self._thread = threading.Thread(target=self._send, name="scores", daemon=True)

    def __enter__(self) -> "ScoreReporter":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        # None ends the thread after the reports before it; a selection that takes none must not hold up the end.
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_TIMEOUT_S)
            self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning("the selection did not take the last scores within %.0f s; they are lost", _CLOSE_TIMEOUT_S)

    def add(self, sample_ids: np.ndarray, per_sample_B: Tensor) -> None:
        """Keep the scores of one step; nothing is copied from the device yet."""
        if self._selection is not None:
            self._ids.append(np.asarray(sample_ids))
            self._values.append(per_sample_B)

    def flush(self, step: int) -> None:
        """Give the collected scores to the sending thread; `step`, the steps done so far, numbers the report."""
        if not self._ids:
            return
        # Joined here, on the device: one copy to the host for a window, not one for each step.
        report = (step, np.concatenate(self._ids), torch.cat(self._values))
        self._ids, self._values = [], []
        try:
            self._queue.put_nowait(report)
        except queue.Full:
            self._fail(f"{_QUEUED_WINDOWS} windows of scores are still waiting")

    def _send(self) -> None:
        while (report := self._queue.get()) is not None:
            step, ids, values = report
            assert self._selection is not None
            try:
                # The copy from the device is here, so that this thread waits for it and not the training step.
                scores = values.float().cpu().numpy()
                self._selection.report_scores(
                    ids, scores, kind=self._kind, step=step, producer=self._producer, sequence=step
                )
            except Exception as err:  # any failure of a remote service: the thread must outlive it
                self._fail(f"{type(err).__name__}: {err}")

    def _fail(self, reason: str) -> None:
        self.failed += 1
        log.warning("scores were not reported (%d times so far): %s", self.failed, reason)
