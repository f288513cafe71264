"""PixelCache: decoded pixels of the samples that will be drawn most.

The draws' probabilities come with every request, higher where the next draws are known already (`batches.next_use`), so
the cache does not guess from past use. It keeps the images that save the most decoding per byte: their value is
probability times encoded size (the cost of decoding) over decoded size. Images are kept whole and crops are cut from
them, so a hit gives the same pixels as a miss.

Probabilities go out of date, because weight tables change. A sample of probability p that was not drawn for 8/p draws
is an outlier of odds e^-8 under p, so its p is taken to have changed: it loses its value and is evicted first.
"""

from __future__ import annotations

import heapq
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_OUTDATED_AFTER: Final = 8.0
"""Expected draws that a sample may miss."""
_SWEEP_DRAWS: Final = 1 << 16
"""Draws between two looks for outdated samples; each look visits all entries."""


@dataclass(frozen=True, slots=True)
class Demand:
    """How soon a sample is expected again."""

    probability: float
    """Probability that a draw takes the sample; 0 when unknown."""
    draw: int
    """Number of the draw that requests it now."""


@dataclass(slots=True)
class _Entry:
    pixels: NDArray[np.uint8]
    value: float
    """Probability times `cost`; entries of the lowest value are evicted first."""
    cost: float
    """Encoded bytes for each decoded byte."""
    demand: Demand


class PixelCache:
    """Whole decoded images of at most `capacity_bytes` together; 0 keeps none. Thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._entries: dict[int, _Entry] = {}
        # (value, sample_id), the least valuable on top. Items whose value has changed since stay until they come up.
        self._heap: list[tuple[float, int]] = []
        self._used = self._hits = self._misses = self._swept_at = 0
        self._lock = threading.Lock()

    def get(self, sample_id: int, demand: Demand) -> NDArray[np.uint8] | None:
        """Return the pixels of a sample, uint8[H, W, 3], or None. Its value follows the new demand."""
        if not self._capacity:
            return None
        with self._lock:
            entry = self._entries.get(sample_id)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            previous = entry.value
            entry.demand, entry.value = demand, demand.probability * entry.cost
            if entry.value != previous:
                heapq.heappush(self._heap, (entry.value, sample_id))
            return entry.pixels

    def __contains__(self, sample_id: int) -> bool:
        # Without the lock: the answer may be out of date at once anyway, and costs one read from storage at most.
        return sample_id in self._entries

    def wants(self, num_bytes: int, *, encoded_bytes: int, demand: Demand) -> bool:
        """Return whether an image of `num_bytes` decoded bytes would be kept: only then is it decoded whole."""
        if num_bytes > self._capacity:
            return False
        with self._lock:
            if self._used + num_bytes <= self._capacity:
                return True
            # `abs`: another stream over the same loaders begins at draw 0 again.
            if abs(demand.draw - self._swept_at) >= _SWEEP_DRAWS:
                self._swept_at = demand.draw
                for sample_id, entry in self._entries.items():
                    if (demand.draw - entry.demand.draw) * entry.demand.probability > _OUTDATED_AFTER:
                        entry.value = 0.0
                        heapq.heappush(self._heap, (0.0, sample_id))
            return self._lowest_value() < demand.probability * encoded_bytes / num_bytes

    def put(self, sample_id: int, pixels: NDArray[np.uint8], *, encoded_bytes: int, demand: Demand) -> None:
        """Keep the pixels of a sample if they are worth more than the images that must go for them."""
        # Decoding takes time in proportion to the encoded size; the cache pays in decoded bytes.
        cost = encoded_bytes / pixels.nbytes
        entry = _Entry(pixels, demand.probability * cost, cost, demand)
        with self._lock:
            # Two threads may have decoded the same sample, and `wants` was asked before others were put.
            if sample_id in self._entries or not self._make_room(pixels.nbytes, entry.value):
                return
            self._entries[sample_id] = entry
            self._used += pixels.nbytes
            heapq.heappush(self._heap, (entry.value, sample_id))

    def stats(self) -> dict[str, float | int]:
        """Return cache_hits, cache_misses, cache_hit_rate in [0, 1], cache_entries and cache_bytes."""
        with self._lock:
            return {
                "cache_hits": self._hits,
                "cache_misses": self._misses,
                "cache_hit_rate": self._hits / max(1, self._hits + self._misses),
                "cache_entries": len(self._entries),
                "cache_bytes": self._used,
            }

    def _make_room(self, num_bytes: int, value: float) -> bool:
        """Evict less valuable images until `num_bytes` fit. Evict none, and return False, if they cannot."""
        chosen: list[tuple[float, int]] = []
        free = self._capacity - self._used
        while free < num_bytes and self._lowest_value() < value:
            chosen.append(heapq.heappop(self._heap))
            entry = self._entries[chosen[-1][1]]
            free += entry.pixels.nbytes
            entry.value = -1.0  # no heap item has this value, so none brings up the same entry again
        if free < num_bytes:
            for previous, sample_id in chosen:
                self._entries[sample_id].value = previous
                heapq.heappush(self._heap, (previous, sample_id))
            return False
        for _, sample_id in chosen:
            self._used -= self._entries.pop(sample_id).pixels.nbytes
        return True

    def _lowest_value(self) -> float:
        """Return the lowest value in the cache, dropping outdated heap items on the way."""
        while self._heap:
            value, sample_id = self._heap[0]
            entry = self._entries.get(sample_id)
            if entry is not None and entry.value == value:
                return value
            heapq.heappop(self._heap)
        return float("inf")
