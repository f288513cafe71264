"""Windows of draws: the protocol of their sources, a fetcher that is one ahead, and sources with fixed draws.

A window covers `window_steps` optimizer steps of the whole run. With W ranks and a local batch of L, rank r takes rows
[r*L, (r+1)*L) of each step's global batch.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loader.config import StreamConfig
from loader.errors import LoaderError, StreamStalled


class Window(Protocol):
    """The draws of some consecutive steps, with S steps and a global batch of G."""

    @property
    def index(self) -> int:
        """Number of the window, from 0."""

    @property
    def version(self) -> int:
        """Version of the weight table that it was drawn from."""

    @property
    def first_draw(self) -> int:
        """Run-wide number of its first draw."""

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """int64[S*G], in draw order."""

    @property
    def probability(self) -> NDArray[np.float64]:
        """float64[S*G], probability of each draw's sample."""

    @property
    def spare_ids(self) -> NDArray[np.int64]:
        """int64[K], further draws from the same table, for bad samples."""

    @property
    def spare_probability(self) -> NDArray[np.float64]:
        """float64[K]."""


class WindowSource(Protocol):
    """Source of windows; the same index always gives the same window."""

    def window(self, index: int) -> Window:
        """Return a window: the same draws in every process and after every restart.

        A stream calls this from a thread of its own, in order, at most one window ahead of the step that it delivers.
        What it raises ends the stream.
        """


class WindowFetcher:
    """Fetches windows in a background thread, so that a slow answer hides behind the steps in flight."""

    def __init__(self, source: WindowSource, config: StreamConfig) -> None:
        self._source, self._config = source, config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="windows")
        self._futures: dict[int, Future[Window]] = {}

    def prefetch(self, index: int) -> None:
        """Start fetching a window, unless it is under way, here, or past the end of the run."""
        if index not in self._futures and index * self._config.window_steps < self._config.total_steps:
            self._futures[index] = self._thread.submit(self._source.window, index)

    def peek(self, index: int) -> Window | None:
        """Return a window if it is here already.

        None says nothing about the run: a window that could not be fetched is None as well, and `get` raises why.
        """
        future = self._futures.get(index)
        if future is None or not future.done() or future.exception() is not None:
            return None
        return future.result()

    def get(self, index: int) -> Window:
        """Return a window and forget the ones before it.

        Raises:
            StreamStalled: The source did not answer within the stall timeout.
            LoaderError: The window does not fit the run's configuration.
        """
        self.prefetch(index)  # usually it was started while the window before was in use
        try:
            window = self._futures[index].result(self._config.stall_timeout_s)
        except FutureTimeoutError as error:
            raise StreamStalled(
                f"no window {index} from the selection service within {self._config.stall_timeout_s:g} s. "
                "`tempera status` shows whether it is alive."
            ) from error
        for old in [i for i in self._futures if i < index]:
            del self._futures[old]
        # Checked here: with other sizes the ranks would take wrong rows, and nothing later would notice.
        draws = self._config.window_steps * self._config.global_batch
        if window.index != index or len(window.sample_ids) != draws or len(window.probability) != draws:
            raise LoaderError(
                f"window {index} must carry {draws} draws (window_steps {self._config.window_steps} x global_batch "
                f"{self._config.global_batch}); got window {window.index} with {len(window.sample_ids)}. "
                "Give selection and stream the same sizes."
            )
        return window

    def close(self) -> None:
        """Stop fetching. A call under way ends by its own timeout."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedWindow:
    """A `Window` as a plain value; without a weight table (version 0), and without spares unless some are given."""

    index: int
    first_draw: int
    sample_ids: NDArray[np.int64]
    probability: NDArray[np.float64]
    version: int = 0
    spare_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    spare_probability: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))


class FixedWindows:
    """Windows over given sample ids, in order and without end: for evaluation and feature extraction.

    Raises:
        ValueError: There are no ids.
    """

    def __init__(self, sample_ids: NDArray[np.int64], config: StreamConfig) -> None:
        if not len(sample_ids):
            raise ValueError("sample_ids must not be empty")
        self._sample_ids, self._draws = sample_ids, config.window_steps * config.global_batch

    def window(self, index: int) -> FixedWindow:
        """Return the ids of a window; the order starts again when it is used up.

        Every draw has the probability 1/N, N the number of ids. There are no spares: a sample that cannot be decoded is
        black.
        """
        first = index * self._draws
        ids = self._sample_ids[np.arange(first, first + self._draws) % len(self._sample_ids)]
        probability = np.full(self._draws, 1 / len(self._sample_ids))
        return FixedWindow(index=index, first_draw=first, sample_ids=ids, probability=probability)


class WeightedWindows:
    """Windows of samples drawn with replacement by fixed weights, with spares: a weighted sampler for any loop.

    Every window is a pure function of (seed, window): all ranks and every restart see the same draws. Weights that
    change during a run need a selection service instead.

    Args:
        weights: float64[N], not negative; a sample is drawn in proportion to its weight, and never when that is 0.

    Raises:
        ValueError: The weights are not finite, negative, or all 0.
    """

    def __init__(self, weights: NDArray[np.floating], config: StreamConfig) -> None:
        total = float(np.sum(weights, dtype=np.float64)) if len(weights) else 0.0
        if not (np.isfinite(total) and total > 0 and np.min(weights) >= 0):
            raise ValueError(f"weights must be finite, not negative and not all 0; got {len(weights)} with sum {total}")
        self._probability = np.asarray(weights, np.float64) / total
        # float64: sums in float32 make many of a million samples unreachable.
        self._cumulative = np.cumsum(self._probability)
        self._seed, self._draws = config.seed, config.window_steps * config.global_batch

    def window(self, index: int) -> FixedWindow:
        """Return the draws of a window, and one spare for every hundred."""
        # Counter-based: keyed by the window, no generator's state has to be kept or replayed.
        generator = np.random.Generator(np.random.Philox(key=np.array([self._seed, index], np.uint64)))
        num_spares = max(2, self._draws // 100)
        uniform = generator.random(self._draws + num_spares) * self._cumulative[-1]
        # side="right" passes over samples of weight 0; rounding may give the very end of the scale, hence the clip.
        ids = np.searchsorted(self._cumulative, uniform, side="right").clip(max=len(self._cumulative) - 1)
        probability = self._probability[ids]
        return FixedWindow(
            index=index,
            first_draw=index * self._draws,
            sample_ids=ids[: self._draws],
            probability=probability[: self._draws],
            spare_ids=ids[self._draws :],
            spare_probability=probability[self._draws :],
        )
