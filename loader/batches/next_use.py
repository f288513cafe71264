"""What the draws that are known already say about which samples are wanted again soon: a hint for caches.

A window is drawn as a whole before its first batch is made. A sample that comes up again in it after d draws is
certain to save one decoding for d draws of room, a rate of 1/d; that says more than its probability, which is the
rate at which it is drawn in the long run. The hint is the larger of the two. It decides no pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loader.batches.windows import Window


def draws_until_next(sample_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return for each draw after how many draws its sample is drawn again, as float64[n]; infinity if it is not."""
    order = np.argsort(sample_ids, kind="stable")
    same = sample_ids[order[1:]] == sample_ids[order[:-1]]
    distance = np.full(len(sample_ids), np.inf)
    distance[order[:-1][same]] = np.diff(order)[same]
    return distance


class Foresight:
    """Hints for the windows of one stream, each computed once."""

    def __init__(self) -> None:
        self._key: tuple[int, bool] | None = None
        self._hints: NDArray[np.float64] = np.zeros(0)

    def hints(self, window: Window, following: Window | None) -> NDArray[np.float64]:
        """Return for each draw of a window the rate per draw at which its sample is used from then on, in (0, 1].

        Args:
            window: The window whose draws are asked for next.
            following: The one after it, if it is known already.
        """
        key = (window.index, following is not None)
        if key != self._key:
            known = [np.asarray(draws.sample_ids, np.int64) for draws in (window, following) if draws is not None]
            rate = 1 / draws_until_next(np.concatenate(known))[: len(known[0])]
            self._key, self._hints = key, np.maximum(np.asarray(window.probability, np.float64), rate)
        return self._hints
