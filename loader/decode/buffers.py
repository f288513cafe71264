"""Memory for batches of pixels, reused as soon as no array refers to it any more.

A batch is tens of megabytes. Allocated anew each time, every page of it costs a fault and zeroing, together about a
tenth of the decoding time.
"""

from __future__ import annotations

import threading
import weakref
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MAX_FREE_BLOCKS: Final = 4


class ImageBuffers:
    """Allocates uint8[n, 3, size, size] in channels-last memory. Thread-safe."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, num_images: int, size: int) -> NDArray[np.uint8]:
        """Return uninitialised images. Their memory is free again when the last view of them is gone."""
        num_bytes = 3 * size * size * num_images
        block = None
        with self._lock:
            # The block freed last is the likeliest to be in the processor's caches; one twice too large is a waste.
            for number in reversed(range(len(self._free))):
                if num_bytes <= len(self._free[number]) <= 2 * num_bytes:
                    block = self._free.pop(number)
                    break
        if block is None:
            block = np.empty(num_bytes, np.uint8)
        # Built on a memoryview: numpy's views skip arrays between them and the owner of the memory, and so this one
        # too.
        lease: NDArray[np.uint8] = np.frombuffer(block.data, np.uint8, count=num_bytes)
        weakref.finalize(lease, self._release, block).atexit = False
        return lease.reshape(num_images, size, size, 3).transpose(0, 3, 1, 2)

    def _release(self, block: NDArray[np.uint8]) -> None:
        """Add a block to the free ones; drop the oldest of too many."""
        with self._lock:
            self._free.append(block)
            del self._free[:-_MAX_FREE_BLOCKS]
