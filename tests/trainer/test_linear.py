from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from trainer.evaluate.data import LabelledShards
from trainer.evaluate.features import Extractor, Features
from trainer.evaluate.fewshot import (
    STRENGTHS,
    FewShotConfig,
    choose_strength,
    draw_shots,
    few_shot,
    lars,
    logistic,
    logistic_regression,
)
from trainer.evaluate.fit import named_groups
from trainer.evaluate.lars import Lars
from trainer.evaluate.linear import linear_probe, probe_features
from trainer.evaluate.recipes import LINEAR, LinearConfig, cosine_rate

CPU = torch.device("cpu")


def clouds(seed, count, classes=4, spread=1.0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(7).normal(size=(classes, 12)) * 2
    values = centres[labels] + spread * generator.normal(size=(count, 12))
    return Features(values.astype(np.float32), labels.astype(np.int64))


def test_lars_equals_a_slow_twin():
    generator = np.random.default_rng(0)
    weights = {"weight": generator.normal(size=(4, 3)), "bias": generator.normal(size=4)}
    parameters = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in weights.items()}
    optimizer = Lars(named_groups(list(parameters.items()), weight_decay=0.1), lr=0.5)
    momentum = {name: np.zeros_like(value) for name, value in weights.items()}
    for _ in range(5):
        for name, value in weights.items():
            gradient = generator.normal(size=value.shape)
            parameters[name].grad = torch.from_numpy(gradient.copy())
            if value.ndim > 1:
                gradient = gradient + 0.1 * value
                gradient = gradient * 0.001 * np.linalg.norm(value) / np.linalg.norm(gradient)
            momentum[name] = 0.9 * momentum[name] + gradient
            weights[name] = value - 0.5 * momentum[name]
        optimizer.step()
    for name, value in weights.items():
        assert np.allclose(parameters[name].detach().numpy(), value, atol=1e-12)


def test_a_step_of_lars_without_a_gradient_or_a_norm_is_plain():
    zero, still = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Lars([{"params": [zero, still]}], lr=1.0)
    zero.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(zero.detach(), -torch.ones(2, 2))
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_the_probe_is_level_with_sklearn_on_kept_features():
    train, test = clouds(0, 400, spread=2.5), clouds(1, 400, spread=2.5)
    reference = LogisticRegression(max_iter=500).fit(train.values, train.labels).score(test.values, test.labels)
    found = probe_features(train, test, LinearConfig(batch=100, base_lr=50.0, epochs=40), device=CPU)
    assert found["acc1"] == pytest.approx(reference, abs=0.03)
    assert found["best_acc1"] >= found["acc1"]
    assert len(found["curve"]) == 40


def test_rates_warm_up_and_scale_with_the_batch():
    rate = partial(cosine_rate, LINEAR["mae"], 16384, 78)
    assert rate(0) == 0.0
    assert rate(78 * 10) == pytest.approx(6.4)
    assert rate(78 * 50) == pytest.approx(3.2)
    assert cosine_rate(LINEAR["clmae"], 64, 10, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("config", [{"augment": True}, {"augment": False, "pool": "mean", "layer": 1}], ids=str)
def test_colours_are_told_apart_through_the_loader(coloured, tiny_encoder, tmp_path, config):
    train, test = (LabelledShards(path) for path in coloured)
    recipe = LinearConfig(batch=20, base_lr=20.0, epochs=15, warmup_epochs=1, **config)
    found = linear_probe(tiny_encoder, train, test, recipe, device=CPU, directory=tmp_path / "probe")
    assert found["acc1"] > 0.7
    again = linear_probe(tiny_encoder, train, test, recipe, device=CPU, directory=tmp_path / "probe")
    assert again == found
    with pytest.raises(ValueError, match="continued with its own settings"):
        linear_probe(
            tiny_encoder, train, test, LinearConfig(batch=30, epochs=15), device=CPU, directory=tmp_path / "probe"
        )


def test_an_interrupted_probe_continues_as_if_it_had_not_been(tmp_path):
    train, test = clouds(0, 60), clouds(1, 30)
    config = LinearConfig(batch=20, epochs=6, warmup_epochs=1, base_lr=1.0)

    def stop(done, total):
        if done == 10:
            raise KeyboardInterrupt

    whole = probe_features(train, test, config, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        probe_features(train, test, config, device=CPU, directory=tmp_path, progress=stop)
    resumed = probe_features(train, test, config, device=CPU, directory=tmp_path)
    assert resumed == whole


def test_features_of_a_block_are_its_output(coloured, tiny_encoder):
    images, labels, rows = LabelledShards(coloured[0]).load(np.arange(4), transform(tiny_encoder))
    first, last = (Extractor(tiny_encoder, CPU, layer=layer).tokens(images) for layer in (1, 2))
    assert torch.allclose(tiny_encoder.encoder.norm(last), Extractor(tiny_encoder, CPU).tokens(images), atol=1e-5)
    assert not torch.allclose(first, last)
    assert labels.tolist() == [0, 1, 2, 0]
    assert rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.2"):
        Extractor(tiny_encoder, CPU, layer=3)


def transform(pretrained):
    from trainer.evaluate.data import center_crop

    return center_crop(pretrained.image_size)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_logistic_regression_equals_sklearn(strength):
    train, test = clouds(0, 60, spread=2.0), clouds(1, 40)
    weight, bias = logistic_regression(
        torch.from_numpy(train.values).double(), torch.from_numpy(train.labels), strength
    )
    reference = LogisticRegression(C=strength, max_iter=2000, tol=1e-8).fit(
        train.values.astype(np.float64), train.labels
    )
    ours = (torch.from_numpy(test.values).double() @ weight.T + bias).softmax(dim=1).numpy()
    assert np.allclose(ours, reference.predict_proba(test.values), atol=2e-4)


def test_few_shots_give_mean_and_deviation_over_draws():
    train, test = clouds(0, 120, spread=3.0), clouds(1, 200, spread=3.0)
    config = FewShotConfig(shots=(1, 5, 16), draws=2)
    rows = few_shot(train, test, config)
    assert [row["shots"] for row in rows] == [1, 5, 16]
    assert rows[0]["acc1"] < rows[2]["acc1"] <= rows[2]["acc5"] <= 1
    found = []
    for draw in range(2):
        picked = draw_shots(train.labels, 5, seed=[0, 5, draw])
        assert np.bincount(train.labels[picked]).tolist() == [5] * 4
        found.append(logistic(Features(train.values[picked], train.labels[picked]), test)["acc1"])
    assert rows[1]["acc1"] == pytest.approx(np.mean(found))
    assert rows[1]["acc1_std"] == pytest.approx(np.std(found, ddof=1))


def test_the_classifier_of_clmae_is_its_probe_at_an_unscaled_rate():
    train, test = clouds(0, 64), clouds(1, 40)
    wanted = probe_features(train, test, LinearConfig(lr_batch=0, batch=16), device=CPU)
    assert lars(train, test) == {"acc1": wanted["acc1"], "acc5": wanted["acc5"]}
    row = few_shot(train, test, FewShotConfig(shots=(16,), draws=2, classifier="lars"))[0]
    assert row["acc1"] == pytest.approx(wanted["acc1"], abs=0.3)  # all 16 of each class, in another order


def test_the_strength_is_the_one_that_folds_like_best():
    values = torch.from_numpy(clouds(0, 40, spread=4.0).values).double()
    labels = torch.arange(40) % 4
    assert choose_strength(values[:4], labels[:4]) == 1.0
    assert choose_strength(values, labels) in STRENGTHS[:3]


def test_impossible_shots_and_labels_are_refused(coloured, tmp_path):
    train = clouds(0, 40)
    with pytest.raises(ValueError, match=r"smallest class \(10\); got 16"):
        few_shot(train, train, FewShotConfig())
    with pytest.raises(ValueError, match="classifier must be one of logistic, lars; got 'svm'"):
        FewShotConfig(classifier="svm")
    with pytest.raises(ValueError, match=r"batch must be in 1\.\.60"):
        LabelledShards(coloured[0]).epoch_steps(61)
