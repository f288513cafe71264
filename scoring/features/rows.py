"""Rows: a matrix of features that is read block by block, and the normalised views of it.

The normalisation decides what a distance between features means. The paper clusters features as they are; its authors'
library standardises each dimension and then scales each row to length 1 (METHODS section 8). A view copies only the
rows that are read, so the matrix may lie on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

ROWS_AT_ONCE = 65_536
TINY = 1e-12
"""Lengths and deviations below this count as zero."""


class Rows(Protocol):
    """A matrix [N, F], read by slices and by ascending row numbers: an array, a store on disk, or a view of either."""

    @property
    def shape(self) -> Any:
        """(N, F)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Float32: ...


def row_blocks(rows: Rows) -> Iterator[tuple[int, Float32]]:
    """Yield (number of the first row, contiguous float32 [n, F]) over all rows, n at most ROWS_AT_ONCE."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield start, np.ascontiguousarray(rows[start : start + ROWS_AT_ONCE])


class NormalisedRows:
    """Rows seen through a function of some of them."""

    def __init__(self, rows: Rows, change: Callable[[Float32], Float32]) -> None:
        self._rows, self._change = rows, change

    @property
    def shape(self) -> Any:
        """(N, F)."""
        return self._rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Float32:
        return self._change(self._rows[rows])


def normalised(rows: Rows, preset: str) -> Rows:
    """Return the view of rows [N, F] that a name of PRESETS asks for.

    Standardising reads all rows twice, here and now; the view reads only what is asked of it.

    Raises:
        ValueError: for another name.
    """
    if preset not in PRESETS:
        raise ValueError(f"normalise must be one of {', '.join(PRESETS)}; got {preset!r}.")
    for step in PRESETS[preset]:
        rows = NormalisedRows(rows, step(rows))
    return rows


def _standardise(rows: Rows) -> Callable[[Float32], Float32]:
    """Return a map to mean 0 and variance 1 in each dimension over all rows; a constant dimension becomes 0."""
    total, square, count = np.zeros(rows.shape[1]), np.zeros(rows.shape[1]), len(rows)
    for _, part in row_blocks(rows):
        total += part.sum(axis=0, dtype=np.float64)
    mean = total / count
    # A second pass, for E[x^2] - E[x]^2 cancels where the mean is large against the deviation.
    for _, part in row_blocks(rows):
        square += ((part - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(square / count)
    scale = np.where(deviation > TINY, 1.0 / np.maximum(deviation, TINY), 0.0)
    return lambda part: np.asarray((part - mean) * scale, dtype=np.float32)


def _unit_length(rows: Rows) -> Callable[[Float32], Float32]:
    """Return a map to Euclidean length 1; a row of zeros stays."""
    return lambda part: np.asarray(
        part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), TINY), dtype=np.float32
    )


PRESETS: dict[str, tuple[Callable[[Rows], Callable[[Float32], Float32]], ...]] = {
    "none": (),
    "standardise": (_standardise,),
    "l2": (_unit_length,),
    "library": (_standardise, _unit_length),
}
"""Name -> steps in their order; "library" is what the authors' library does."""
