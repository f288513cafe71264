"""Which request holds which part of a stream's ring, and when a part is safe to use again.

A loader writes into its slot until it answers or dies. A slot whose request was given up is therefore kept aside
until one of the two is certain: a late write must never land in another request's images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from loader.batches.ring import Ring, RingAddress, Slot

log = logging.getLogger(__name__)


class SlotKeeper:
    """The slots of one stream. Without shared memory, or with a size of 0, it has none to give.

    Args:
        num_bytes: Size of the ring.
    """

    def __init__(self, num_bytes: int) -> None:
        self._ring = _open_ring(num_bytes)
        self._kept_aside: list[tuple[Slot, Callable[[], bool]]] = []

    @property
    def address(self) -> RingAddress | None:
        """How loaders find the ring; None when there is none."""
        return None if self._ring is None else self._ring.address

    @property
    def free_bytes(self) -> int:
        """Bytes that a request could get now."""
        self._reap()
        return 0 if self._ring is None else self._ring.free_bytes

    def allocate(self, num_bytes: int) -> Slot | None:
        """Return a slot, or None when there is no room."""
        self._reap()
        return None if self._ring is None else self._ring.allocate(num_bytes)

    def images(self, slot: Slot, num_images: int, size: int) -> NDArray[np.uint8]:
        """Return uint8[n, 3, size, size] in a slot, without copying."""
        assert self._ring is not None
        return self._ring.images(slot, num_images, size)

    def free(self, slot: Slot) -> None:
        """Give a slot back whose request was answered."""
        assert self._ring is not None
        self._ring.free(slot)

    def free_once(self, slot: Slot, is_safe: Callable[[], bool]) -> None:
        """Give a slot back as soon as nobody can write to it any more."""
        self._kept_aside.append((slot, is_safe))

    def _reap(self) -> None:
        waiting, self._kept_aside = self._kept_aside, []
        for slot, is_safe in waiting:
            if is_safe():
                self.free(slot)
            else:
                self._kept_aside.append((slot, is_safe))


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _open_ring(num_bytes: int) -> Ring | None:
    if not num_bytes:
        return None
    try:
        return Ring(num_bytes)
    except (OSError, AttributeError) as error:
        log.warning("no shared memory (%s): all pixels go through the object store, which is slower", error)
        return None
