"""A stream of batches as a rank's training loop sees it, and what stands between the two and looks on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from loader import Batch


class Stream(Protocol):
    """A stream of batches that can be continued."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order of step."""

    def state_dict(self) -> dict[str, int]:
        """See `BatchStream.state_dict`."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `BatchStream.load_state_dict`."""

    def stats(self) -> dict[str, float | int]:
        """See `BatchStream.stats`."""


class WatchedStream:
    """Passes on everything but the batches; a subclass iterates over `self._stream` and looks at each."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def state_dict(self) -> dict[str, int]:
        """See `BatchStream.state_dict`."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `BatchStream.load_state_dict`."""
        self._stream.load_state_dict(state)

    def stats(self) -> dict[str, float | int]:
        """See `BatchStream.stats`."""
        return self._stream.stats()
