"""Memory for batches of pixels that is used again as soon as nobody looks at it any more.

A batch is tens of megabytes. Taken anew each time, every page of it costs a fault and zeroing, about a tenth of what
decoding costs; so memory that was let go of is handed out again. Whoever holds a tensor, an array or a view of
either keeps its memory out of reach.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

_KEPT: Final = 4
"""Blocks that are kept for later."""


class ImageBuffers:
    """Hands out uint8[n, 3, size, size] in channels-last memory. Thread-safe."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, num_images: int, size: int) -> torch.Tensor:
        """Return uninitialised images. Their memory comes back by itself when the last view of them is gone."""
        needed = 3 * size * size * num_images
        block = self._block(needed)
        # Through a memoryview: numpy lets views skip an array between them and the one that owns the memory.
        lease: NDArray[Any] = np.frombuffer(block.data, np.uint8, count=needed)
        weakref.finalize(lease, self._give_back, block).atexit = False
        return torch.from_numpy(lease).view(num_images, size, size, 3).permute(0, 3, 1, 2)

    def _block(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return a block that is large enough but at most twice as large, the last one given back if it is."""
        with self._lock:
            for number in reversed(range(len(self._free))):
                if num_bytes <= len(self._free[number]) <= 2 * num_bytes:
                    return self._free.pop(number)
        return np.empty(num_bytes, np.uint8)

    def _give_back(self, block: NDArray[np.uint8]) -> None:
        """Keep a block; of too many the oldest goes."""
        with self._lock:
            self._free.append(block)
            del self._free[:-_KEPT]
