from dataclasses import replace

import numpy as np
import pytest
import torch
from trainer_fakes import FakeSelection, FakeStream, tiny, tiny_run

from scoring import masked_mean_score, patch_weighted_score
from trainer import ModelConfig, Progress, RunHooks, StepRandomness, TrainConfig, build_method, read_metrics, train
from trainer.config import PassConfig
from trainer.loop import build_state
from trainer.optim import learning_rate
from trainer.progress import cost_epochs, predictor_trains, progress_at, selection_epochs, selects_after, total_steps
from trainer.sweep import Sweep, score_batch

IMAGENET = 1_281_167
PAPER = PassConfig(enabled=True)
SMALL = PassConfig(enabled=True, predictor_depth=1, full_epochs=2, period=2, predictor_epochs=1, keep=0.5)


def test_thirty_percent_over_200_epochs_is_the_37_percent_budget():
    assert cost_epochs(200, PAPER) == pytest.approx(0.37 * 200)
    assert total_steps(IMAGENET, 4096, 200, PAPER) == 22_980


def test_the_predictor_trains_before_each_selection():
    trains = [epoch for epoch in range(200) if predictor_trains(epoch, PAPER)]
    assert trains[:4] == [17, 18, 19, 37]
    assert len(trains) == 30
    assert selection_epochs(200, PAPER) == [19, 39, 59, 79, 99, 119, 139, 159, 179]


def test_selections_follow_the_short_epochs_and_the_rate_follows_the_epoch():
    config = TrainConfig(
        model=ModelConfig(pass_=PAPER),
        total_steps=22_980,
        global_batch=4096,
        epoch_steps=312,
        warmup_steps=40 * 312,
    )
    steps = [step for step in range(22_981) if selects_after(progress_at(config, step), PAPER)]
    assert steps == [20 * 312 + 20 * 93 * k for k in range(9)]
    assert progress_at(config, 22_979).num_epochs == 200
    middle = 20 * 312 + 100 * 93
    assert progress_at(config, middle).epoch == 120
    assert learning_rate(config, middle) == pytest.approx(config.peak_lr * 0.5)
    assert learning_rate(config, 20 * 312) == pytest.approx(config.peak_lr * 0.5)


def test_the_weights_of_the_score_are_the_known_ones():
    predicted = torch.tensor([[1.0, 0.5, 0.2, 0.9]], dtype=torch.float64)
    mask = build_method("mae", tiny(image_size=8, mask_ratio=0.5)).difficulty_mask(predicted)
    assert mask.mask_BN.tolist() == [[1, 0, 0, 1]]
    loss = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    assert patch_weighted_score(loss, predicted, mask.mask_BN, 0.1).item() == pytest.approx(0.731059, abs=1e-6)
    flat = torch.ones(1, 4)
    losses = torch.tensor([[3.0, 0, 0, 1.0]])
    assert (
        patch_weighted_score(losses, flat, mask.mask_BN).item() == masked_mean_score(losses, mask.mask_BN).item() == 2
    )


def test_ties_go_to_the_lower_patch_and_blocks_stay_whole():
    mae = build_method("mae", tiny(image_size=8, mask_ratio=0.5))
    assert mae.difficulty_mask(torch.zeros(1, 4)).masked_BM.tolist() == [[0, 1]]
    simmim = build_method("simmim", tiny(image_size=64, patch_size=16, mask_ratio=0.5))
    predicted = torch.zeros(1, 4, 4)
    predicted[0, 0, 3] = predicted[0, 3, 1] = 5.0
    assert simmim.difficulty_mask(predicted.flatten(1)).mask_BN.view(4, 4).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
    ]


def selecting(method: str, **fields):
    shape = {"image_size": 64, "patch_size": 16, "mask_ratio": 0.6} if method == "simmim" else {}
    return build_method(method, tiny(pass_=replace(SMALL, **fields), **shape)), torch.rand(4, 3, 64, 64)


@pytest.mark.parametrize("method", ["mae", "simmim"])
def test_the_predictor_trains_in_its_epochs_only_and_never_moves_the_decoder(method):
    module, images = selecting(method)
    images = images[..., : module.config.image_size, : module.config.image_size]
    decoder = module.decoder.pred.weight if method == "mae" else module.head.weight
    grads = []
    for epoch in (0, 1):
        module.zero_grad(set_to_none=True)
        module.begin_step(Progress(step=epoch, total_steps=4, epoch_steps=1))
        losses = module(images, StepRandomness(seed=0, step=0))
        losses.total.backward()
        grads.append(decoder.grad.clone())
        assert all((p.grad is None) == (epoch == 0) for p in module.predictor.parameters() if p.requires_grad)
        assert ("predictor" in losses.parts) == (epoch == 1)
    assert torch.equal(*grads)


def test_the_predictors_loss_divides_by_all_patches():
    module, images = selecting("mae")
    images = images[..., :16, :16]
    module.begin_step(Progress(step=1, total_steps=4, epoch_steps=1))
    torch.nn.init.zeros_(module.predictor.pred.weight)
    torch.nn.init.zeros_(module.predictor.pred.bias)
    losses = module(images, StepRandomness(seed=0, step=0))
    assert losses.parts["predictor"].item() == pytest.approx(losses.patch_loss_BN.square().mean().item(), rel=1e-6)


def sweep_batches(images):
    def batches(ids):
        for start in range(0, len(ids), 5):
            part = ids[start : start + 5]
            yield part, images[part]

    return batches


@pytest.mark.parametrize("score", ["pass", "bss"])
def test_scoring_twice_gives_the_same_scores_for_every_sample_once(score):
    config = tiny_run(model=tiny(pass_=replace(SMALL, score=score)))
    state = build_state(config)
    images = FakeStream(config).images(range(23)).numpy()
    first, second = FakeSelection(), FakeSelection()
    for selection in (first, second):
        result = Sweep(sweep_batches(images), selection, num_samples=23)(state)
        assert (result.scored, result.missing, result.non_finite) == (23, 0, 0)
    assert first.reports[0][0].tolist() == list(range(23))
    assert np.array_equal(first.reports[0][1], second.reports[0][1])
    assert (first.reports[0][2], first.reports[0][4]) == (score, "sweep-0-0")
    assert state.method.training
    alone = score_batch(state, torch.as_tensor(images[7:8]), np.array([7]))
    assert alone[0] == pytest.approx(first.reports[0][1][7], rel=1e-4)


def test_duplicates_and_missing_samples_are_counted_once():
    config = tiny_run(model=tiny(pass_=SMALL))
    state, selection = build_state(config), FakeSelection()
    images = FakeStream(config).images(range(4)).numpy()
    picked = np.array([2, 0, 2, 1])
    result = Sweep(lambda ids: [(picked, images[picked])], selection, num_samples=4)(state)
    assert (result.scored, result.missing) == (3, 1)
    assert sorted(selection.reports[0][0].tolist()) == [0, 1, 2]


def test_a_run_sweeps_after_its_full_epochs_and_again_each_period(tmp_path):
    config = tiny_run(model=tiny(pass_=SMALL), total_steps=14, epoch_steps=4)
    selection, rounds = FakeSelection(), []
    images = FakeStream(config).images(range(9)).numpy()
    sweep = Sweep(sweep_batches(images), selection, num_samples=9, after=lambda result: rounds.append(result.step))
    train(config, FakeStream(config), run_dir=tmp_path, selection=selection, hooks=RunHooks(sweep=sweep))
    assert rounds == [8, 12]
    assert {report[2] for report in selection.reports if report[4] == "trainer-0"} == {"loss"}
    trained = ["predictor" in line for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert trained == [False] * 4 + [True] * 4 + [False] * 2 + [True] * 2 + [False] * 2


def test_pass_says_what_it_needs(tmp_path):
    config = tiny_run(model=tiny(pass_=SMALL))
    with pytest.raises(ValueError, match="pass needs a sweep over the data set"):
        train(config, FakeStream(config), run_dir=tmp_path)
    with pytest.raises(ValueError, match="pass works with mae and simmim; got method 'conmim'"):
        build_method("conmim", tiny(pass_=SMALL))
    with pytest.raises(ValueError, match=r"pass keep \(rho\) must be in \(0, 1\]; got 1\.5"):
        PassConfig(keep=1.5)
