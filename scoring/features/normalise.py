"""Normalised features: what distances between them mean is decided here.

The paper clusters features as they are; its authors' library standardises each dimension and scales each row to length
1 (METHODS section 8). Both are views of rows that may lie on disk: nothing is copied but what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.clusters import ROWS_AT_ONCE, Rows

Float32 = NDArray[np.float32]

TINY = 1e-12
"""Lengths and deviations below are taken for zero."""


class NormalisedRows:
    """Rows seen through a function of some rows."""

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
    """Rows under a preset.

    Args:
        rows: [N, F].
        preset: a name of PRESETS.

    Raises:
        ValueError: for another name.
    """
    if preset not in PRESETS:
        raise ValueError(f"normalise must be one of {', '.join(PRESETS)}; got {preset!r}.")
    for step in PRESETS[preset]:
        rows = NormalisedRows(rows, step(rows))
    return rows


def _standardise(rows: Rows) -> Callable[[Float32], Float32]:
    """Mean 0 and variance 1 in each dimension over all rows; a constant dimension becomes 0."""
    total, square, count = np.zeros(rows.shape[1]), np.zeros(rows.shape[1]), len(rows)
    for start in range(0, count, ROWS_AT_ONCE):
        total += rows[start : start + ROWS_AT_ONCE].sum(axis=0, dtype=np.float64)
    mean = total / count
    for start in range(0, count, ROWS_AT_ONCE):
        square += ((rows[start : start + ROWS_AT_ONCE] - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(square / count)
    scale = np.where(deviation > TINY, 1.0 / np.maximum(deviation, TINY), 0.0)
    return lambda part: np.asarray((part - mean) * scale, dtype=np.float32)


def _unit_length(rows: Rows) -> Callable[[Float32], Float32]:
    """Every row of Euclidean length 1; a row of zeros stays."""
    return lambda part: np.asarray(
        part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), TINY), dtype=np.float32
    )


PRESETS: dict[str, tuple[Callable[[Rows], Callable[[Float32], Float32]], ...]] = {
    "none": (),
    "standardise": (_standardise,),
    "l2": (_unit_length,),
    "library": (_standardise, _unit_length),
}
"""By name, what is done in turn; "library" is the authors' library."""
