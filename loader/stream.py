"""BatchStream: the iterator of a trainer. Windows of draws go in, batches of pixels come out, in step order.

1. A window of draws is fetched before it is needed, in a thread (`batches.windows.WindowFetcher`).
2. This rank's rows of a few steps form a group (`batches.groups.Group`), routed to loaders by rendezvous hashing.
3. Replies are copied into the group's buffer. Lost and late requests go to another loader; spares replace bad samples.
4. Finished batches wait in a short queue for the trainer.

Steps 2 and 3 run in a second thread, so faults are handled while the trainer computes. Every wait has a deadline. The
only state to save is the next step: everything else is a pure function of it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, replace

from loader.batch import BadSample, Batch
from loader.batches.assembly import Assembler, StreamStats
from loader.batches.windows import WindowFetcher, WindowSource
from loader.config import StreamConfig
from loader.errors import StreamStalled
from loader.pool import LoaderPool

_READY_STEPS = 2
"""Finished batches that wait for the trainer, on top of those in flight."""
_STOP_TIMEOUT_S = 5.0
_OBSERVE_S = 2.0
"""Seconds between two reports of the trainer's waits to the pool."""


class BatchStream:
    """Iterates the batches of one rank, from the step in its state to `total_steps`.

    One iteration at a time; leaving the loop early stops the work, and iterating again continues where it stopped.
    `on_bad` is called with each bad sample as soon as it is found, from the stream's thread.
    """

    def __init__(
        self,
        windows: WindowSource,
        loaders: LoaderPool,
        config: StreamConfig,
        *,
        on_bad: Callable[[BadSample], None] | None = None,
    ) -> None:
        self._windows, self._loaders, self._config = windows, loaders, config
        self._on_bad = on_bad or (lambda _: None)
        self._stats = StreamStats()
        self._step = 0
        self._running = False

    def __iter__(self) -> Iterator[Batch]:
        if self._running:
            raise ValueError("the stream is being iterated already; finish or close that loop first")
        fetcher = WindowFetcher(self._windows, self._config)
        assembler = Assembler(
            fetcher,
            self._loaders,
            self._config,
            stats=self._stats,
            on_bad=self._on_bad,
            delivered=lambda: self._step,
        )
        prefetcher = _Prefetcher(assembler.batches())
        observed_s, waited_since_s = float("inf"), 0.0
        self._running = True
        try:
            while self._step < self._config.total_steps:
                started = time.monotonic()
                # The assembler raises after stall_timeout_s by itself; at twice that its thread hangs in a pool.
                batch = prefetcher.get(2 * self._config.stall_timeout_s)
                now = time.monotonic()
                waited = now - started
                # Before the batch is handed out: a state saved while the trainer works on it continues after it.
                self._step = batch.step + 1
                self._stats.images += len(batch.sample_ids)
                self._stats.wait_s += waited
                if observed_s > now:  # not counted: the first wait is for the loaders to start
                    observed_s = now
                else:
                    waited_since_s += waited
                    if now - observed_s >= _OBSERVE_S:
                        self._loaders.observe(min(1.0, waited_since_s / (now - observed_s)))
                        observed_s, waited_since_s = now, 0.0
                yield replace(batch, wait_s=waited)
        finally:
            # Also when the trainer leaves its loop: the next iteration makes again the batches that it has not taken.
            prefetcher.stop()
            fetcher.close()
            self._running = False

    def state_dict(self) -> dict[str, int]:
        """Return the state of the stream: its next step."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a step, before iterating.

        Raises:
            ValueError: The stream is being iterated, or the step is outside the run.
        """
        step = state["step"]
        if self._running:
            raise ValueError("load_state_dict must come before iterating; leave the loop first")
        if not 0 <= step <= self._config.total_steps:
            raise ValueError(f"step must be in 0..{self._config.total_steps}; got {step}")
        self._step = step

    def stats(self) -> dict[str, float | int]:
        """Return totals: images, requests, hedged, rerouted, substituted, wait_s."""
        return asdict(self._stats)


class _Prefetcher:
    """Runs an iterator of batches in a thread, a bounded number of batches ahead."""

    def __init__(self, batches: Generator[Batch | None, None, None]) -> None:
        self._batches = batches
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_READY_STEPS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batch-stream", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> Batch:
        """Return the next batch, or raise what stopped the thread."""
        try:
            item = self._ready.get(timeout=timeout_s)
        except queue.Empty as error:
            raise StreamStalled(
                f"the stream's thread did nothing for {timeout_s:g} s; is the machine frozen?"
            ) from error
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """Stop the thread and wait for it; it looks at the flag several times a second."""
        self._stop.set()
        self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            for batch in self._batches:
                if batch is not None:
                    self._put(batch)
                if self._stop.is_set():
                    return
        # Every error: a thread that dies silently would leave the trainer waiting for its timeout.
        except BaseException as error:
            self._put(error)
        finally:
            self._batches.close()  # gives up the requests in flight

    def _put(self, item: Batch | BaseException) -> None:
        # In short waits: a trainer that has left takes nothing any more, and `stop` must still end the thread.
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
