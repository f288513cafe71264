"""The functions that are compiled when Tempera is installed (`native/`), or None for each where they were not.

They need a C compiler at installation and an x86-64 processor with AVX2. Every caller has a slower way to the same
bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

log = logging.getLogger(__name__)

decode_box: Callable[..., bool] | None = None
resize: Callable[..., bool] | None = None
missing = ""
"""Why the functions are missing; empty when they are there."""

try:
    from loader.decode import _native

    decode_box, resize = _native.decode_box, _native.resize
except ImportError as error:
    missing = str(error)


@cache
def warn_if_missing() -> None:
    """Warn once per process that decoding is slower than it could be."""
    if missing:
        log.warning("loaders are about 0.6 times as fast without Tempera's compiled decoder (%s)", missing)
