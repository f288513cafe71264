"""When each sample is drawn next: a hint for the loaders' caches.

A window is drawn as a whole before its first batch is made, so the near future is known (Belady, 1966: evict the
sample used last). A sample that comes again after d draws saves one decoding for d draws of cache room, a rate of 1/d.
Where that is more than its probability, the rate at which it is drawn in the long run, the hint is 1/d. It changes no
pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loader.batches.windows import Window


def draws_until_next(sample_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64[n], the number of draws until each draw's sample is drawn again; infinity if it is not.

    The ids are int64[n] in the order of the draws: of ids 5, 7, 5 the distances are 2, infinity, infinity.
    """
    # A stable sort puts the draws of one sample side by side, in the order of the draws.
    order = np.argsort(sample_ids, kind="stable")
    same = sample_ids[order[1:]] == sample_ids[order[:-1]]
    distance = np.full(len(sample_ids), np.inf)
    distance[order[:-1][same]] = np.diff(order)[same]
    return distance


def cache_hints(window: Window, following: Window | None) -> NDArray[np.float64]:
    """Return float64[S*G] in (0, 1], the rate per draw at which each draw's sample is used from then on.

    That is max(p, 1/d): p the sample's probability in one draw, d the draws until it comes again in this window or in
    the one that follows, which is None while it is not known.
    """
    # The next window counts as what follows; the draws of this one are those that need hints.
    known = [np.asarray(draws.sample_ids, np.int64) for draws in (window, following) if draws is not None]
    rate = 1 / draws_until_next(np.concatenate(known))[: len(known[0])]
    return np.maximum(np.asarray(window.probability, np.float64), rate)
