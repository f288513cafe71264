"""RAUC: how much faster one method's accuracy grows over training than another's (MTO Eq. 6; METHODS section 6).

With S1 and S2 the accuracies of the baseline and of the method, RAUC(E1, E2) is the area of S2 above S1(E1)
divided by the area of S1 above S1(E1), by trapezoids over the measured epochs. 1 means equally fast.
"""

from collections.abc import Sequence

import numpy as np

from trainer.config import require


def rauc(
    epochs: Sequence[float],
    baseline: Sequence[float],
    method: Sequence[float],
    *,
    start: float | None = None,
    end: float | None = None,
) -> float:
    """Return the relative area under the curve.

    `epochs` (or steps) increase, at least 3 of them from `start` (E1, the first by default) to `end` (E2, the last);
    `baseline` and `method` have a score at each, better when larger.

    Raises:
        ValueError: lengths differ, epochs are not increasing or do not hold the range, a score is not finite, or the
            baseline does not rise above its start.
    """
    grid, ours, theirs = (np.asarray(values, np.float64) for values in (epochs, method, baseline))
    require(
        len(grid) == len(ours) == len(theirs),
        f"rauc needs one score of each run an epoch; got {len(grid)} epochs, {len(theirs)} and {len(ours)} scores.",
    )
    require(len(grid) >= 3, f"rauc needs 3 or more measured epochs; got {len(grid)}. Evaluate more often.")
    require(bool(np.isfinite([grid, ours, theirs]).all()), "rauc needs finite epochs and scores; some are not.")
    require(bool((np.diff(grid) > 0).all()), f"rauc needs increasing epochs; got {list(epochs)}. Sort them.")
    low, high = grid[0] if start is None else start, grid[-1] if end is None else end
    for name, edge in (("start", low), ("end", high)):
        require(
            edge in grid, f"rauc {name} must be a measured epoch ({', '.join(f'{e:g}' for e in grid)}); got {edge}."
        )
    inside = (grid >= low) & (grid <= high)
    require(int(inside.sum()) >= 3, f"rauc needs 3 or more epochs from {low:g} to {high:g}; got {int(inside.sum())}.")
    floor = theirs[inside][0]
    area = float(np.trapezoid(theirs[inside] - floor, grid[inside]))
    require(
        area > 0,
        f"rauc needs a baseline that rises above its score at {low:g} ({floor:g}); its area is {area:g}. Choose "
        "another start.",
    )
    return float(np.trapezoid(ours[inside] - floor, grid[inside])) / area


def common_curve(
    first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float], list[float]]:
    """Return (epochs, first scores, second scores) where both curves of (epoch, score) were measured, in order.

    Runs may be evaluated at different epochs; interpolating between them would invent scores.
    """
    left, right = dict(first), dict(second)
    epochs = sorted(left.keys() & right.keys())
    return epochs, [left[epoch] for epoch in epochs], [right[epoch] for epoch in epochs]
