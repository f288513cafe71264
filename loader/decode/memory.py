"""Lets malloc keep freed memory: a loader frees and allocates half a megabyte per image, a thousand times a second.

By default glibc returns blocks over 128 KB to the kernel at once, and every fresh page then costs a fault and zeroing:
measured, a tenth of the decoding time. Called in processes that only load.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Final

log = logging.getLogger(__name__)

# malloc.h: parameters of mallopt.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_MMAP_THRESHOLD: Final = 32 << 20
_MAX_FREE_BYTES: Final = 256 << 20


def keep_freed_memory() -> bool:
    """Let malloc keep up to 256 MB of freed memory. Return whether the allocator took the settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        log.info("this C library has no mallopt; freed memory goes back to the kernel at once")
        return False
    # Blocks over the mmap threshold are mapped anew each time. Setting it also stops glibc from adapting it.
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, _MAX_FREE_BYTES),
        (_M_TOP_PAD, 16 << 20),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
