"""The functions that are compiled when Tempera is installed (`native/`), or None for each where they were not.

They are for x86-64 with AVX2 and need a C compiler. Whoever calls them has another way with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

log = logging.getLogger(__name__)

decode_box: Callable[..., bool] | None = None
resize: Callable[..., bool] | None = None
missing = ""
"""Why they are not there."""

try:
    from loader.decode import _native

    decode_box, resize = _native.decode_box, _native.resize
except ImportError as error:
    missing = str(error)


@cache
def warn_if_missing() -> None:
    """Say once that decoding goes the slower way."""
    if missing:
        log.warning("loaders are about 0.6 times as fast without Tempera's compiled decoder (%s)", missing)
