"""Decoded pixels of the samples that will be drawn most.

The draws' probabilities come with every request, higher where the next draws are known already (`foresight`), so
nothing has to be guessed from past use: the cache keeps what saves the most decoding per byte, which is probability
times encoded size (what decoding costs) over decoded size.
It holds whole decoded images, crops are cut from them, so a hit gives the same pixels as a miss.

A probability can go out of date: tables change. A sample of probability p that was not drawn for 8/p draws has
another one by now (the odds are e^-8), and is the first to go.
"""

from __future__ import annotations

import heapq
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_OUTDATED: Final = 8.0
_SWEEP_DRAWS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Demand:
    """How much a sample is wanted."""

    probability: float
    """With which each draw takes it; 0 when unknown."""
    draw: int
    """The draw that asks for it now."""


NO_DEMAND: Final = Demand(probability=0.0, draw=0)


@dataclass(slots=True)
class _Entry:
    pixels: NDArray[np.uint8]
    value: float
    cost: float
    demand: Demand


class PixelCache:
    """Whole decoded images within a number of bytes. Thread-safe.

    Args:
        capacity_bytes: Most bytes of pixels held; 0 holds none.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._entries: dict[int, _Entry] = {}
        self._lowest: list[tuple[float, int]] = []
        self._used = self._hits = self._misses = self._swept_at = 0
        self._lock = threading.Lock()

    def get(self, sample_id: int, demand: Demand) -> NDArray[np.uint8] | None:
        """Return the pixels of a sample, uint8[H, W, 3], or None."""
        if not self._capacity:
            return None
        with self._lock:
            entry = self._entries.get(sample_id)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            stale_value = entry.value
            entry.demand, entry.value = demand, demand.probability * entry.cost
            if entry.value != stale_value:
                heapq.heappush(self._lowest, (entry.value, sample_id))
            return entry.pixels

    def __contains__(self, sample_id: int) -> bool:
        return sample_id in self._entries

    def wants(self, num_bytes: int, *, encoded_bytes: int, demand: Demand) -> bool:
        """Return whether an image of `num_bytes` decoded bytes would be kept: decode it whole only then."""
        if num_bytes > self._capacity:
            return False
        with self._lock:
            if self._used + num_bytes <= self._capacity:
                return True
            self._sweep(demand.draw)
            return self._least_value() < demand.probability * encoded_bytes / num_bytes

    def put(self, sample_id: int, pixels: NDArray[np.uint8], *, encoded_bytes: int, demand: Demand) -> None:
        """Keep the pixels of a sample if they are worth more than what has to go for them."""
        cost = encoded_bytes / pixels.nbytes
        entry = _Entry(pixels, demand.probability * cost, cost, demand)
        with self._lock:
            if sample_id in self._entries or not self._make_room(pixels.nbytes, entry.value):
                return
            self._entries[sample_id] = entry
            self._used += pixels.nbytes
            heapq.heappush(self._lowest, (entry.value, sample_id))

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
        """Drop less valuable images until `num_bytes` fit; drop nothing if that cannot be."""
        dropped: list[tuple[float, int]] = []
        free = self._capacity - self._used
        while free < num_bytes and self._least_value() < value:
            dropped.append(heapq.heappop(self._lowest))
            free += self._entries[dropped[-1][1]].pixels.nbytes
            self._entries[dropped[-1][1]].value = -1.0
        if free < num_bytes:
            for least, sample_id in dropped:
                self._entries[sample_id].value = least
                heapq.heappush(self._lowest, (least, sample_id))
            return False
        for _, sample_id in dropped:
            self._used -= self._entries.pop(sample_id).pixels.nbytes
        return True

    def _least_value(self) -> float:
        """Return the lowest value held, dropping heap items that are out of date."""
        while self._lowest:
            value, sample_id = self._lowest[0]
            entry = self._entries.get(sample_id)
            if entry is not None and entry.value == value:
                return value
            heapq.heappop(self._lowest)
        return float("inf")

    def _sweep(self, draw: int) -> None:
        """Take the value from samples whose probability must be out of date. Amortised over many draws."""
        if abs(draw - self._swept_at) < _SWEEP_DRAWS:
            return
        self._swept_at = draw
        for sample_id, entry in self._entries.items():
            if (draw - entry.demand.draw) * entry.demand.probability > _OUTDATED:
                entry.value = 0.0
                heapq.heappush(self._lowest, (0.0, sample_id))
