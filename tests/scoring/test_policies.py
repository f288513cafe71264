import math

import numpy as np
import pytest

from scoring import Control, PolicyOptions, RunLog, Selection, sampling_probabilities
from scoring.policies import POLICIES, parse_policy
from tests.scoring.configs import distances, selection_config

N = 500


def by_id(inputs):
    """A user's policy: even ids only."""
    return (inputs.sample_ids() % 2 == 0).astype(float)


def looks_around(inputs):
    """A user's policy that is not row-wise."""
    return inputs.distances() / inputs.distances().sum()


def nothing(inputs):
    return np.zeros(inputs.num_rows)


def wrong_shape(inputs):
    return np.ones(3)


USER = f"{__name__}:by_id"


def selection(policy="prototypical", distance=None, **changes):
    config = selection_config(
        **{"seed": 1, "global_batch": 64, "window_steps": 16, "policy": policy, "start": 0.3, **changes}
    )
    return Selection(distances(N) if distance is None else distance, config)


def probabilities(chosen):
    """Probability of every sample under the weights in force."""
    chosen.settle()
    weights = chosen._history.weigh_now(chosen._controls.latest_key())
    return np.concatenate([probability for _, probability in weights.probabilities()])


def report(chosen, values, kind="loss", **changes):
    ids = np.flatnonzero(~np.isnan(values))
    changes = {"step": 0, "producer": "rank-0", "sequence": 0, **changes}
    assert chosen.report_scores(ids, np.asarray(values)[ids], kind=kind, **changes).accepted == len(ids)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_a_law_and_draws_by_it(policy):
    chosen = selection(policy)
    probability = probabilities(chosen)
    assert probability.sum() == pytest.approx(1.0, abs=1e-12)
    window = chosen.window(0)
    np.testing.assert_allclose(window.probability, probability[window.sample_ids], rtol=1e-12)
    if policy != "uniform":
        expected = -np.expm1(N * np.log1p(-probability)).mean()
        assert window.effective_size == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("direction", ["prototypical", "hard"])
def test_softmax_policies_follow_the_formula(direction):
    chosen = selection(direction)
    window = chosen.window(0)
    np.testing.assert_allclose(
        probabilities(chosen), sampling_probabilities(distances(N), window.temperature, direction), rtol=1e-9
    )


def test_importance_is_a_floored_power_and_unscored_samples_are_average():
    chosen = selection("importance", options=PolicyOptions(importance_power=2.0, importance_floor=0.5))
    np.testing.assert_allclose(probabilities(chosen), 1 / N)
    values = np.full(N, np.nan)
    values[:4] = [1.0, 2.0, 3.0, 0.0]
    report(chosen, values)
    weights = np.ones(N)
    weights[:4] = [(1 / 1.5) ** 2, (2 / 1.5) ** 2, 4.0, 0.25]
    np.testing.assert_allclose(probabilities(chosen), weights / weights.sum(), rtol=1e-6)


def test_new_scores_make_a_new_table_version():
    chosen = selection("importance")
    versions = [chosen.window(0).version, chosen.window(1).version]
    report(chosen, np.random.default_rng(1).random(N))
    versions += [chosen.window(2).version, chosen.window(3).version]
    assert versions == [1, 1, 2, 2]


@pytest.mark.parametrize("kind", ["bss", "pass"])
def test_round_keeps_exactly_the_best_share_ties_by_id(kind):
    chosen = selection(kind, rho=0.3)
    np.testing.assert_allclose(probabilities(chosen), 1 / N)
    values = np.round(np.random.default_rng(2).random(N), 2)
    report(chosen, values, kind)
    np.testing.assert_allclose(probabilities(chosen), 1 / N)
    reply = chosen.control(Control(kind="round", value=kind, author="trainer"))
    assert (reply.window, reply.version, reply.temperature) == (0, 1, None)
    assert chosen.control(Control(kind="round", value=kind, author="trainer", request="r")).version == 2
    assert chosen.control(Control(kind="round", value=kind, author="trainer", request="r")).version == 2
    expected = np.sort(np.lexsort((np.arange(N), -values))[:150])
    np.testing.assert_array_equal(np.flatnonzero(probabilities(chosen)), expected)
    window = chosen.window(0)
    assert np.isin(window.sample_ids, expected).all()
    assert (window.probability == 1 / 150).all()
    report(chosen, 1 - values, kind, step=1, sequence=1)
    np.testing.assert_array_equal(np.flatnonzero(probabilities(chosen)), expected)


def test_equal_scores_keep_the_lowest_ids():
    chosen = selection("bss")
    report(chosen, np.zeros(N), "bss")
    chosen.control(Control(kind="round", value="bss", author="trainer"))
    np.testing.assert_array_equal(np.flatnonzero(probabilities(chosen)), np.arange(150))


def test_round_without_all_scores_is_refused_and_changes_nothing():
    chosen = selection("bss")
    values = np.random.default_rng(3).random(N)
    values[[3, 4]] = np.nan
    report(chosen, values, "bss")
    with pytest.raises(ValueError, match="got 2 without a score"):
        chosen.control(Control(kind="round", value="bss", author="trainer"))
    with pytest.raises(ValueError, match="round must name a score"):
        chosen.control(Control(kind="round", value="loss", author="trainer"))
    assert chosen.log() == []
    np.testing.assert_allclose(probabilities(chosen), 1 / N)


def test_product_of_subset_and_softmax_solves_within_the_subset():
    chosen = selection("bss * prototypical", start=0.15)
    values = np.random.default_rng(4).random(N)
    report(chosen, values, "bss")
    chosen.control(Control(kind="round", value="bss", author="trainer"))
    members = np.argsort(-values, kind="stable")[:150]
    window = chosen.window(0)
    probability = probabilities(chosen)
    assert -np.expm1(N * np.log1p(-probability)).mean() == pytest.approx(0.15, abs=1e-9)
    assert set(np.flatnonzero(probability)) == set(members)
    inside = sampling_probabilities(distances(N)[members], window.temperature)
    np.testing.assert_allclose(probability[members], inside, rtol=1e-6)


def test_subset_too_small_for_the_size_is_drawn_uniformly():
    chosen = selection("bss*prototypical", start=0.6)
    report(chosen, np.arange(N), "bss")
    chosen.control(Control(kind="round", value="bss", author="trainer"))
    window = chosen.window(0)
    assert window.temperature == math.inf
    assert window.effective_size == pytest.approx(0.3 * (1 - (1 - 1 / 150) ** 500), rel=1e-9)


def test_user_policy_is_loaded_by_import_path():
    chosen = selection(USER, user_policies=(USER,))
    assert (chosen.window(0).sample_ids % 2 == 0).all()
    product = selection(f"prototypical*{USER}", user_policies=(USER,)).window(0)
    assert (product.sample_ids % 2 == 0).all()


def test_import_path_that_the_configuration_does_not_allow_is_refused():
    with pytest.raises(ValueError, match="policy must be one of"):
        selection(USER)
    with pytest.raises(ValueError, match="policy must be one of"):
        selection().control(Control(kind="policy", value="os:getcwd", author="ann"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:policy", "must be importable"),
        ("math:no_such_function", "must be importable"),
        ("math:pi", "must be a function"),
        ("math", "must be a function"),
    ],
)
def test_user_policy_that_is_not_there_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        selection(path, user_policies=(path,))


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "at least one weight"), ("looks_around", "each row by itself"), ("wrong_shape", "one weight a row")],
)
def test_unusable_user_policy_is_refused_when_it_is_set(name, message):
    path = f"{__name__}:{name}"
    chosen = selection(user_policies=(path,))
    with pytest.raises(ValueError, match=message):
        chosen.control(Control(kind="policy", value=path, author="ann"))
    assert chosen.window(0).policy == "prototypical"
    assert chosen.log() == []


def test_policy_names_are_parsed():
    plan = parse_policy(" pass * prototypical ")
    assert (plan.name, plan.factors, plan.direction) == ("pass*prototypical", ("pass", "prototypical"), "prototypical")
    with pytest.raises(ValueError, match="share a temperature"):
        parse_policy("hard*prototypical")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"importance_kind": "best"}, "importance_kind must be"),
        ({"importance_power": -1.0}, "importance_power must be"),
        ({"importance_floor": 0.0}, "importance_floor must be"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PolicyOptions(**changes)


def test_log_keeps_the_cutoff_of_a_round(tmp_path):
    log = RunLog(tmp_path / "run.sqlite")
    config = selection_config(seed=1, global_batch=8, policy="bss", num_samples=10)
    chosen = Selection(None, config, runlog=log)
    chosen.report_scores(range(10), range(10), kind="bss", step=0, producer="a", sequence=0)
    chosen.control(Control(kind="round", value="bss", author="trainer"))
    (entry,) = log.table_changes()
    assert '"threshold": 7.0, "last_id": 7, "kept": 3' in entry.detail
