"""Bad samples: the draw takes a spare instead, and too many of them stop the run.

Spares are further draws from the same table, so the substitute is unbiased. The spare of a position is a pure function
of the position, so trainer ranks agree without talking.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from loader.batch import BadSample
from loader.errors import TooManyBadSamplesError

_RECENT_DRAWS: Final = 1000
_MIN_DRAWS: Final = 400
"""The share counts at least this many draws: a few bad samples at the start stop nothing."""


def substitute(position: int, attempt: int, *, num_draws: int, num_spares: int) -> int | None:
    """Return the number of the spare for a position, in 0..num_spares-1, or None when its attempts have used up all.

    Args:
        position: Number of the draw in its window, in 0..num_draws-1.
        attempt: Spares that the position had before and that were bad as well, from 0.
        num_draws: Draws of the window.
        num_spares: Spares of the window, 0 or more.
    """
    if attempt >= num_spares:
        return None
    # Neighbouring positions start at the same spare and positions far apart at others: spares are used evenly.
    return (position * num_spares // num_draws + attempt) % num_spares


class BadSampleLimit:
    """Counts the share of bad samples among the last thousand draws or so."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._groups: deque[list[int]] = deque()
        self._examples: deque[BadSample] = deque(maxlen=5)

    def planned(self, num_draws: int) -> None:
        """Count draws that have been requested."""
        # Whole groups leave, as long as the recent draws are still covered without the oldest.
        self._groups.append([num_draws, 0])
        while sum(draws for draws, _ in self._groups) - self._groups[0][0] >= _RECENT_DRAWS:
            self._groups.popleft()

    def add(self, bad: BadSample) -> None:
        """Count a bad sample.

        Raises:
            TooManyBadSamplesError: They are more than the allowed share.
        """
        # Counted where the run is now: the group it belongs to may be a few steps back.
        self._groups[-1][1] += 1
        self._examples.append(bad)
        draws, total = (sum(column) for column in zip(*self._groups, strict=True))
        if total > self._max_share * max(draws, _MIN_DRAWS):
            listed = "; ".join(f"{example.key}: {example.reason}" for example in self._examples)
            raise TooManyBadSamplesError(
                f"{total} of the last {draws} draws were bad samples; at most {self._max_share:.1%} are allowed. "
                f"The last ones: {listed}. Check the data with `tempera shards verify --full`."
            )
