"""What happens to a draw whose sample is bad: it takes a spare, and too many of them stop the run.

Spares are further draws from the same table, so the substitute is unbiased. Which one a position takes is a pure
function of the position, so trainer ranks agree without talking.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from loader.batch import BadSample
from loader.errors import TooManyBadSamplesError

_RECENT_DRAWS: Final = 1000
_LEAST_DRAWS: Final = 400
"""The share is taken of at least so many draws: a few bad samples at the start stop nothing."""


@dataclass(frozen=True, slots=True)
class Substitute:
    """Decision: give this position the spare of this number."""

    spare: int


def substitute(position: int, attempt: int, *, num_draws: int, num_spares: int) -> Substitute | None:
    """Return the spare for a position of a window, or None when all have been tried.

    Args:
        position: Place in the window, 0..num_draws-1.
        attempt: How many spares this position has tried already.
        num_draws: Draws in the window.
        num_spares: Spares in the window.
    """
    if attempt >= num_spares:
        return None
    return Substitute((position * num_spares // num_draws + attempt) % num_spares)


class BadSampleLimit:
    """Watches the share of bad samples among the last thousand draws or so."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._groups: deque[list[int]] = deque()
        self._examples: deque[BadSample] = deque(maxlen=5)

    def planned(self, num_draws: int) -> None:
        """Count draws that have been asked for."""
        self._groups.append([num_draws, 0])
        while sum(draws for draws, _ in self._groups) - self._groups[0][0] >= _RECENT_DRAWS:
            self._groups.popleft()

    def add(self, bad: BadSample) -> None:
        """Count a bad sample.

        Raises:
            TooManyBadSamplesError: If they are more than the allowed share.
        """
        self._groups[-1][1] += 1
        self._examples.append(bad)
        draws, total = (sum(column) for column in zip(*self._groups, strict=True))
        if total > self._max_share * max(draws, _LEAST_DRAWS):
            listed = "; ".join(f"{example.key}: {example.reason}" for example in self._examples)
            raise TooManyBadSamplesError(
                f"{total} of the last {draws} draws were bad samples; at most {self._max_share:.1%} are allowed. "
                f"The last ones: {listed}. Check the data with `tempera shards verify --full`."
            )
