"""Which loader makes which sample, and when a request is late.

Routing is rendezvous hashing (Thaler and Ravishankar, 1998): every member gets a hash for each sample, and the highest
wins. A member that joins takes 1/(W+1) of the samples and no other sample moves; the samples of a member that leaves go
to their second choices. So caches stay warm and nobody coordinates.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from loader.errors import LoaderLost

_MAX_MEMBERS, _MAX_TIMES = 256, 64
"""Members whose times are remembered, and how many of each."""


def route(sample_ids: NDArray[np.int64], members: Sequence[str], *, avoid: Collection[str] = ()) -> NDArray[np.int64]:
    """Return int64[n], the position in `members` of the loader for each sample.

    Members to avoid, such as one that just failed, are passed over: their samples go to the next choice. When all are
    to be avoided, none is.

    Raises:
        LoaderLost: There are no members.
    """
    if not members:
        raise LoaderLost("no loader is alive; see `tempera status` for why they died")
    scores = np.stack([_scores(sample_ids, name) for name in members])
    avoided = [name in avoid for name in members]
    # Zero loses against every member that is not avoided; the order of the others stays as it is.
    if any(avoided) and not all(avoided):
        scores[np.array(avoided)] = 0
    choice: NDArray[np.int64] = scores.argmax(axis=0)
    return choice


def _scores(sample_ids: NDArray[np.int64], name: str) -> NDArray[np.uint64]:
    """Return a member's hash for each sample of int64[n]: uint64[n] in 1..2^64-1, the highest wins.

    SplitMix64's finaliser (Steele et al., 2014) over the id mixed with a hash of the name.
    """
    # Not `hash`: every trainer rank, in its own process, must route a sample alike.
    salt = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    z = sample_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


class Deadline:
    """The age at which a request is late: three times the 95th percentile of a typical member, at least a floor.

    The typical member is the median one, the faster of two: a straggler must not make its own lateness typical.
    """

    def __init__(self, *, least_s: float) -> None:
        self._least_s = least_s
        self._recent: dict[str, deque[float]] = {}
        self.seconds = least_s
        """Age at which a request is late."""

    def add(self, seconds: float, *, member: str) -> None:
        """Record how long a member took for a request, in seconds, and set `self.seconds` anew.

        The last _MAX_TIMES times of each member count.
        """
        self._recent.setdefault(member, deque(maxlen=_MAX_TIMES)).append(seconds)
        # A fleet that scales names new members for days: the ones met first are forgotten.
        while len(self._recent) > _MAX_MEMBERS:
            del self._recent[next(iter(self._recent))]
        each = sorted(float(np.percentile(recent, 95)) for recent in self._recent.values())
        self.seconds = max(self._least_s, 3 * each[(len(each) - 1) // 2])
