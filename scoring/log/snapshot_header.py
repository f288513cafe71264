"""The header of a snapshot: what it says of the arrays behind it, believed only where it is all there and adds up."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

DTYPES = ("<u2", "<u4", "<f4", "<i8", "|u1")
MAX_SIDE = 1 << 40


class BadSnapshot(Exception):
    """A snapshot file is not whole; the message says where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """What of the log a snapshot holds."""

    next_window: int
    """Draws of windows below it are counted."""
    scores_through: int
    """Score reports up to this sequence are merged."""
    rounds_through: int
    """Selection rounds up to this sequence are closed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """One array of a snapshot, before it is read."""

    name: str
    """Name of the column."""
    dtype: str
    """One of DTYPES."""
    shape: tuple[int, ...]
    """Its sides."""
    num_bytes: int
    """What it takes in the file."""
    crc32: int
    """CRC-32 of that."""


def checked_header(text: bytes) -> tuple[Position, list[Described], dict[str, Any]]:
    """Return position, arrays and facts.

    Raises:
        BadSnapshot: if a field is missing, of another kind, or does not go with the others.
    """
    try:
        header = json.loads(text)
        position = Position(**{field.name: _count(header["position"][field.name]) for field in fields(Position)})
        facts = dict(header["facts"])
        producers = {str(kind): [_text(name) for name in names] for kind, names in dict(facts["producers"]).items()}
        checked = {"num_samples": _count(facts["num_samples"]), "producers": producers}
        return position, [_array(array) for array in header["arrays"]], checked
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadSnapshot(f"its header must describe a position and arrays; it does not ({error!r})") from error


def _array(array: dict[str, Any]) -> Described:
    dtype, shape = _text(array["dtype"]), tuple(_count(side) for side in array["shape"])
    described = Described(
        name=_text(array["name"]),
        dtype=dtype,
        shape=shape,
        num_bytes=_count(array["bytes"]),
        crc32=_count(array["crc32"]),
    )
    if len(shape) > 2 or max(shape, default=0) > MAX_SIDE:
        raise ValueError(f"an array of sides {shape}")
    if dtype not in DTYPES or math.prod(shape) * np.dtype(dtype).itemsize != described.num_bytes:
        raise ValueError(f"{dtype} of {shape} in {described.num_bytes} bytes")
    return described


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]} is no count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]} is no text")
    return value
