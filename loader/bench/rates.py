"""Counts items per second of endless iterators, alone or in turns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator


def rate(batches: Iterable[int], seconds: float, *, warm_up: float = 0.3) -> float:
    """Return items per second of an iterable of counts, measured for `seconds` after a warm-up, a share of them.

    Raises:
        ValueError: The batches end before the measurement does.
    """
    start = time.perf_counter()
    counted, began = 0, 0.0
    for count in batches:
        now = time.perf_counter()
        # The batch that ends the warm-up was made during it, so it is not counted.
        if began:
            counted += count
        elif now - start >= warm_up * seconds:
            began = now
        if began and now - began >= seconds:
            return counted / (now - began)
    raise ValueError(f"the measurement ended before {seconds:g} s: too few images")


def rates(sources: dict[str, Iterator[int]], seconds: float, *, slice_s: float = 0.25) -> dict[str, float]:
    """Return items per second of endless iterators over counts that take turns, so that other load hits all of them.

    Each gets `seconds` in all, `slice_s` at a time.
    """
    counted, spent = dict.fromkeys(sources, 0), dict.fromkeys(sources, 0.0)
    for source in sources.values():
        next(source)  # starts its threads, untimed
    while min(spent.values()) < seconds:
        for name, source in sources.items():
            start = now = time.perf_counter()
            while now - start < slice_s:
                counted[name] += next(source)
                now = time.perf_counter()
            spent[name] += now - start
    return {name: counted[name] / spent[name] for name in sources}
