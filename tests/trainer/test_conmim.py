import math

import pytest
import torch
from trainer_fakes import GOLDENS, FakeStream, tiny, tiny_run

from tests.bench.goldens import golden_conmim, golden_images, golden_mask
from trainer import Progress, StepRandomness
from trainer.config import ConmimConfig
from trainer.loop import build_state
from trainer.methods.colour_jitter import blur, change_colours, jitter, turn_hue
from trainer.methods.conmim import cosine_momentum
from trainer.models.vit import patchify
from trainer.step import train_step


def test_the_loss_equals_the_official_one():
    method, images = golden_conmim(), golden_images(2, 64)
    losses = method.contrast(images, images.flip(1) * 0.9, golden_mask(2))
    assert losses.mask_BN.sum().item() == GOLDENS["conmim"]["logits_shape"][0]
    assert losses.total.item() == pytest.approx(GOLDENS["conmim"]["loss"], abs=1e-6)


def test_equal_keys_cost_the_logarithm_of_the_number_of_patches():
    method, images = golden_conmim(), golden_images(2, 64)
    torch.nn.init.zeros_(method.teacher_projector[6].weight)
    losses = method.contrast(images, images, golden_mask(2))
    assert losses.total.item() == pytest.approx(math.log(16), abs=1e-6)


def test_an_identical_teacher_without_a_mask_is_found_and_sharply_at_low_temperature():
    method = golden_conmim()
    patches = patchify(golden_images(2, 64), 16)
    q = method._project(method.projector, method.encoder.encode(patches))
    logits = (q @ q.mT).flatten(0, 1)
    labels = torch.arange(16).repeat(2)
    costs = [torch.nn.functional.cross_entropy(logits / t, labels).item() for t in (0.1, 0.01, 0.0001)]
    assert costs[0] < math.log(16)
    assert costs[0] > costs[1] > costs[2]


def test_the_teacher_moves_by_its_momentum_and_has_no_gradient():
    config = tiny_run(method="conmim", model=tiny(conmim=ConmimConfig(hidden=32, projection=8)), base_lr=1e-2)
    state, stream = build_state(config), FakeStream(config)
    for step in range(2):
        before = state.method.teacher_encoder.norm.bias.clone()
        train_step(state, stream.batch(step).images)
    moved = state.method.teacher_encoder.norm.bias - before
    momentum = cosine_momentum(Progress(step=1, total_steps=8, epoch_steps=1), 0.996)
    assert torch.allclose(moved, (1 - momentum) * (state.method.encoder.norm.bias.detach() - before), atol=1e-8)
    assert all(p.grad is None for n, p in state.method.named_parameters() if n.startswith("teacher_"))


def test_momentum_rises_from_its_start_to_one():
    at = [cosine_momentum(Progress(step=s, total_steps=100, epoch_steps=1), 0.996) for s in (0, 50, 100)]
    assert at == pytest.approx([0.996, 0.998, 1.0])


def test_the_colours_of_the_teachers_view_depend_on_the_step_and_row_only():
    images = torch.rand(6, 3, 32, 32) * 4 - 2
    kwargs = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    whole = change_colours(images, StepRandomness(seed=0, step=0), **kwargs)
    part = change_colours(images[4:], StepRandomness(seed=0, step=0, first_row=4), **kwargs)
    assert torch.allclose(whole[4:], part, atol=1e-5)
    assert not torch.allclose(whole, change_colours(images, StepRandomness(seed=0, step=1), **kwargs), atol=0.1)


def test_hue_turns_colours_about_grey_and_blur_keeps_the_mean():
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    third = turn_hue(images, torch.full((2, 1, 1, 1), 1 / 3, dtype=torch.float64))
    assert torch.allclose(third, images.roll(1, dims=1))
    grey = images.mean(1, keepdim=True).expand_as(images)
    assert torch.allclose(turn_hue(grey, torch.full((2, 1, 1, 1), 0.07, dtype=torch.float64)), grey)
    flat = torch.full((2, 3, 16, 16), 0.3, dtype=torch.float64)
    assert torch.allclose(blur(flat, torch.tensor([0.5, 2.0], dtype=torch.float64)), flat)
    half = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    assert torch.allclose(jitter(images, half, half, half, half), images)
