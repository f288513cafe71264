import numpy as np
import pytest
from sklearn.metrics import auc

from trainer.evaluate.rauc import common_curve, rauc


def test_the_papers_form_by_hand():
    assert rauc([100, 200, 400], [80, 81, 82.5], [81, 82.2, 83]) == pytest.approx(1.7)


def test_equal_curves_give_one_and_a_common_affine_map_changes_nothing():
    epochs, first = [0, 50, 100, 300], [0.2, 0.5, 0.55, 0.6]
    second = [0.25, 0.5, 0.6, 0.62]
    assert rauc(epochs, first, first) == pytest.approx(1)
    moved = [[3 * value - 7 for value in curve] for curve in (first, second)]
    assert rauc(epochs, *moved) == pytest.approx(rauc(epochs, first, second))


@pytest.mark.parametrize("seed", range(3))
def test_areas_equal_sklearns(seed):
    rng = np.random.default_rng(seed)
    epochs = np.cumsum(rng.integers(1, 30, size=8)).astype(float)
    first, second = np.sort(rng.random((2, 8)), axis=1)
    wanted = auc(epochs[2:], second[2:] - first[2]) / auc(epochs[2:], first[2:] - first[2])
    assert rauc(epochs, first, second, start=epochs[2]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1, 2], [1, 2]), "3 or more measured epochs; got 2"),
        (([1, 3, 2], [1, 2, 3], [1, 2, 3]), "needs increasing epochs"),
        (([1, 2, 3], [1, 2], [1, 2, 3]), "one score of each run an epoch; got 3 epochs, 2 and 3"),
        (([1, 2, 3], [1, 1, 1], [1, 2, 3]), "needs a baseline that rises above its score at 1"),
        (([1, 2, 3], [1, 2, float("nan")], [1, 2, 3]), "needs finite epochs and scores"),
    ],
)
def test_bad_curves_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        rauc(*arguments)


def test_the_range_must_lie_on_measured_epochs():
    curve = [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"start must be a measured epoch \(1, 2, 3, 4\); got 1\.5"):
        rauc(curve, curve, curve, start=1.5)
    with pytest.raises(ValueError, match="3 or more epochs from 1 to 2; got 2"):
        rauc(curve, curve, curve, end=2)


def test_curves_meet_where_both_were_measured():
    assert common_curve([(2, 0.2), (1, 0.1), (3, 0.3)], [(3, 0.6), (1, 0.4)]) == ([1, 3], [0.1, 0.3], [0.4, 0.6])
