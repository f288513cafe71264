from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from loader import Transform
from loader.decode.crops import boxes, flips, philox4x32, uniforms


def make_boxes(draws: int, width: int, height: int, *, seed: int = 0, **options: object) -> np.ndarray:
    sides = {"width": np.full(draws, width, np.uint16), "height": np.full(draws, height, np.uint16)}
    return boxes(seed, np.arange(draws), Transform(**options), **sides)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox4x32(np.array([counter], np.uint64), key)[0]
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_uniforms_are_uniform_and_differ_by_seed_draw_and_block():
    sample = uniforms(5, np.arange(20_000), 0)
    assert sample.min() >= 0
    assert sample.max() < 1
    assert all(kstest(sample[:, column], "uniform").pvalue > 1e-4 for column in range(4))
    assert abs(np.corrcoef(sample.T) - np.eye(4)).max() < 0.03
    for other in (
        uniforms(6, np.arange(20_000), 0),
        uniforms(5, np.arange(20_000) + 2**32, 0),
        uniforms(5, np.arange(20_000), 1),
    ):
        assert (other == sample).mean() < 1e-3


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64), (900, 200)])
def test_boxes_have_the_distribution_of_torchvision(width, height):
    ours = make_boxes(6000, width, height)
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-4


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (300, 100), (1, 1), (2, 9)])
def test_the_central_fallback_is_that_of_torchvision(width, height):
    # Scale 1 with a narrow ratio never fits such images, so both always fall back.
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)} if width != height else {}
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [1.0, 1.0])
    assert make_boxes(1, width, height, **options)[0].tolist() == list(theirs)


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 65_500),
    height=st.integers(1, 65_500),
    seed=st.integers(0, 2**64 - 1),
    low=st.floats(0.01, 1.0),
)
def test_boxes_lie_inside_the_image(width, height, seed, low):
    top, left, h, w = make_boxes(16, width, height, seed=seed, scale=(low, 1.0)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_a_box_depends_on_its_draw_alone():
    rng = np.random.default_rng(1)
    width, height, draws = rng.integers(50, 500, 100), rng.integers(50, 500, 100), rng.integers(0, 2**40, 100)
    together = boxes(3, draws, Transform(), width=width, height=height)
    order = rng.permutation(100)[:37]
    apart = boxes(3, draws[order], Transform(), width=width[order], height=height[order])
    assert (together[order] == apart).all()


def test_half_of_the_draws_are_flipped_and_center_crops_never():
    draws = np.arange(40_000)
    assert abs(flips(0, draws, Transform()).mean() - 0.5) < 0.01
    assert not flips(0, draws, Transform(flip=False)).any()
    assert not flips(0, draws, Transform(kind="center_crop")).any()


def test_center_crops_take_the_whole_image():
    assert make_boxes(2, 30, 20, kind="center_crop").tolist() == [[0, 0, 20, 30]] * 2


@pytest.mark.parametrize(("width", "height"), [(500, 375), (900, 200), (200, 900), (3, 700)])
def test_crops_without_retries_have_the_distribution_of_maes_probe(width, height):
    """The reference is written from the method's text: one draw, sides clamped to the image, then placed."""
    ours = make_boxes(6000, width, height, scale=(0.08, 1.0), retry=False)
    rng = np.random.default_rng(0)
    area = width * height * rng.uniform(0.08, 1.0, 6000)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 6000))
    w = np.minimum(np.round(np.sqrt(area * aspect)), width)
    h = np.minimum(np.round(np.sqrt(area / aspect)), height)
    theirs = np.stack([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w], axis=1)
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    assert (ours[:, 2:] >= 1).all()


def test_bilinear_crops_of_two_thirds_take_at_least_that_area():
    box = make_boxes(3000, 400, 400, scale=(0.67, 1.0)).astype(np.int64)
    assert ((box[:, 2] * box[:, 3]) / 160_000 > 0.66).all()
