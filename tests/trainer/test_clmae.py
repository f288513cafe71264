import math
from dataclasses import replace

import pytest
import torch
from trainer_fakes import GOLDENS, FakeStream, tiny, tiny_run

from tests.bench.goldens import golden_clmae, golden_images
from trainer import Progress, StepRandomness, build_method
from trainer.config import ClmaeConfig
from trainer.loop import build_state
from trainer.methods.clmae import bernoulli_divergence, curriculum_factor, diversity, masker_losses
from trainer.step import normalise, train_step

GOLDEN = GOLDENS["clmae"]
NOTHING = StepRandomness(seed=0, step=0)


def test_both_steps_equal_the_official_ones():
    method, images = golden_clmae(), golden_images(3, 32)
    keep = method.keep_probability(images)
    assert keep.mean(1).tolist() == pytest.approx(GOLDEN["mask_probs_mean"], abs=1e-6)
    assert keep[0, :4].tolist() == pytest.approx(GOLDEN["mask_probs[0,:4]"], abs=1e-6)
    assert method(images, NOTHING, "model").total.item() == pytest.approx(GOLDEN["mae_step_loss"], abs=1e-6)
    masker = method(images, NOTHING, "masker")
    for name, golden in (("recon", "recon"), ("gauss", "gauss"), ("kl", "kl"), ("diversity", "div")):
        assert masker.parts[name].item() == pytest.approx(GOLDEN[golden], abs=1e-6)
    assert masker.total.item() == pytest.approx(sum(GOLDEN[name] for name in ("recon", "gauss", "kl", "div")), abs=1e-6)


def test_each_step_trains_its_own_network_only():
    method, images = build_method("clmae", tiny()), torch.rand(4, 3, 16, 16)
    for phase, other in (("model", "masker"), ("masker", "model")):
        method.zero_grad(set_to_none=True)
        method(images, NOTHING, phase).total.backward()
        assert all(p.grad is None for _, p in method.phase_parameters(other))
        own = [p.grad for _, p in method.phase_parameters(phase)]
        assert sum(grad is not None for grad in own) == len(own)


def test_a_frozen_network_does_not_move_in_the_other_step():
    config = tiny_run(method="clmae", model=tiny(clmae=ClmaeConfig(masker_every=2)))
    state, stream = build_state(config), FakeStream(config)
    train_step(state, stream.batch(0).images)
    before = {name: p.detach().clone() for name, p in state.method.phase_parameters("masker")}
    train_step(state, stream.batch(1).images)
    assert all(torch.equal(p, before[name]) for name, p in state.method.phase_parameters("masker"))
    train_step(state, stream.batch(2).images)
    assert not all(torch.equal(p, before[name]) for name, p in state.method.phase_parameters("masker"))


def test_the_mask_count_is_exact_and_keeps_the_most_probable():
    method, images = build_method("clmae", tiny()), torch.rand(4, 3, 16, 16)
    losses = method(images, NOTHING)
    assert losses.mask_BN.sum(1).tolist() == [12] * 4
    keep = method.keep_probability(images)
    lowest_kept = keep.masked_fill(losses.mask_BN == 1, 2).amin(1)
    assert (lowest_kept >= keep.masked_fill(losses.mask_BN == 0, -1).amax(1)).all()


def test_the_sign_of_the_curriculum_turns_the_reconstruction_gradient():
    config = replace(tiny(), clmae=ClmaeConfig(weight_gauss=0, weight_kl=0, weight_diversity=0))
    method, images = build_method("clmae", config).double(), torch.rand(4, 3, 16, 16).double()
    grads = []
    for factor in (0.7, -0.7):
        method.curriculum = factor
        method.zero_grad(set_to_none=True)
        method(images, NOTHING, "masker").total.backward()
        grads.append(method.masker.head.weight.grad.clone())
    assert torch.allclose(grads[0], -grads[1])
    assert grads[0].abs().max() > 0


def test_divergence_is_zero_at_the_ratio_and_known_elsewhere():
    values = bernoulli_divergence(torch.tensor([0.25, 0.5, 1.0, 0.0], dtype=torch.float64), 0.25)
    assert values.tolist() == pytest.approx([0.0, 0.143841, 1.38629, 0.28768], abs=1e-5)


def test_binarisation_peaks_at_a_half():
    config = tiny(clmae=ClmaeConfig(weight_diversity=0))
    for keep, wanted in ((0.5, 0.300795), (0.25, 0.034339), (1.0, 5.1e-5)):
        losses = masker_losses(torch.full((2, 16), keep), torch.ones(2, 16), config)
        assert losses["gauss"].item() == pytest.approx(wanted, rel=2e-2)


def test_diversity_equals_the_double_loop_and_the_known_values():
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(9, 16, generator=generator, dtype=torch.float64)
    pairs = [math.exp(-0.1 * (keep[i] - keep[j]).norm().item()) for i in range(9) for j in range(i + 1, 9)]
    assert diversity(keep).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    assert diversity(keep[:1].expand(5, -1)).item() == 1.0
    assert diversity(keep[:1]).item() == 0.0
    disjoint = torch.eye(4).repeat_interleave(49, dim=1)
    assert diversity(disjoint).item() == pytest.approx(0.3716, abs=1e-4)


def test_the_curriculum_goes_from_partner_to_adversary():
    def at(step, kind, epochs=8):
        return curriculum_factor(Progress(step=step, total_steps=epochs, epoch_steps=1), kind)

    assert [at(e, "literal") for e in (0, 3, 4, 7)] == [1.0, 0.25, -0.25, -1.0]
    assert (at(0, "linear"), at(7, "linear")) == (1.0, -1.0)
    assert at(1, "linear") == pytest.approx(5 / 7)


def keep_of_images(method, stream):
    return method.keep_probability(normalise(stream.images(range(16)), stream.config))


def test_without_the_diversity_loss_all_images_get_one_mask():
    def spread(**weights):
        settings = ClmaeConfig(masker_depth=1, masker_heads=2, **weights)
        config = tiny_run(method="clmae", model=tiny(clmae=settings, norm_pix=False), total_steps=120, base_lr=0.05)
        state, stream = build_state(config), FakeStream(config)
        for step in range(config.total_steps):
            train_step(state, stream.batch(step).images)
        keep = keep_of_images(state.method, stream)
        assert keep.mean().item() == pytest.approx(0.25, abs=0.02)
        return keep.std(dim=0).mean().item()

    assert spread() > 0.1
    assert spread(weight_diversity=0) < 0.02


@pytest.mark.parametrize(
    ("weight", "partner", "adversary"), [(0.0, (0.8, 1.0), (0.0, 0.15)), (25.6, *2 * [(0.22, 0.28)])]
)
def test_without_the_ratio_loss_the_partner_shows_all_and_the_adversary_hides_all(weight, partner, adversary):
    settings = ClmaeConfig(masker_depth=1, masker_heads=2, masker_every=10**6, weight_kl=weight, weight_diversity=0)
    model = tiny(clmae=settings, norm_pix=False)
    config = tiny_run(method="clmae", model=model, total_steps=201, base_lr=0.1, global_batch=16)
    state, stream = build_state(config), FakeStream(config)
    for step in range(200):
        train_step(state, stream.batch(step).images)
    method = state.method
    for factor, (low, high) in ((1.0, partner), (-1.0, adversary)):
        method.curriculum = factor
        optimizer = torch.optim.AdamW([p for _, p in method.phase_parameters("masker")], lr=3e-3)
        for step in range(50):
            method(normalise(stream.batch(step).images, config), NOTHING, "masker").total.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert low < keep_of_images(method, stream).mean().item() < high
