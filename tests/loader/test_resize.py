from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from loader import Transform
from loader.decode import compiled
from loader.decode.resize import resize_into, resize_window, resize_with_torch

needs_compiler = pytest.mark.skipif(compiled.resize is None, reason="Tempera was installed without a C compiler")


def random_pixels(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise, or black and white, whose overshoot is clamped; sometimes a cut-out of a larger image."""
    margin = int(rng.integers(0, 3))
    pixels = rng.integers(0, 256, (height + margin, width + margin, 3), np.uint8)
    pixels = np.where(pixels > 127, 255, 0).astype(np.uint8) if rng.random() < 0.3 else pixels
    return pixels[margin:, margin:]


@needs_compiler
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_compiled_resize_gives_torchs_bytes(interpolation):
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, [260, 12][int(rng.random() < 0.1)], 2).tolist()
        transform = Transform(size=int(rng.integers(1, 130)), interpolation=interpolation)
        pixels, flip = random_pixels(rng, height, width), bool(rng.random() < 0.5)
        out = np.empty((transform.size, transform.size, 3), np.uint8)
        resize_into(out, pixels, flip=flip, transform=transform)
        window = resize_window(height, width, transform)
        assert np.array_equal(out, resize_with_torch(pixels, window, flip=flip, transform=transform)), (height, width)


@needs_compiler
def test_a_compiled_window_is_part_of_the_whole_resize():
    rng = np.random.default_rng(1)
    for _ in range(60):
        pixels = random_pixels(rng, *rng.integers(20, 300, 2).tolist())
        size = int(rng.integers(1, 100))
        height, width = (size + rng.integers(0, 60, 2)).tolist()
        top, left = int(rng.integers(0, height - size + 1)), int(rng.integers(0, width - size + 1))
        image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        whole = interpolate(image, size=(height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
        out = np.empty((size, size, 3), np.uint8)
        assert compiled.resize(pixels, out, height, width, top, left, size, True, False)
        assert np.array_equal(out, whole[top : top + size, left : left + size])


@needs_compiler
def test_the_compiled_resize_reads_and_writes_nothing_beside():
    rng = np.random.default_rng(2)
    memory = np.full(3 * 40 * 40 + 64, 0xA5, np.uint8)
    for width in range(1, 40):
        pixels = rng.integers(0, 256, (7, width, 3), np.uint8)
        out = memory[32:-32].reshape(40, 40, 3)
        assert compiled.resize(pixels, out, 40, 40, 0, 0, 40, True, True)
        assert (memory[:32] == 0xA5).all()
        assert (memory[-32:] == 0xA5).all()


@needs_compiler
@pytest.mark.parametrize(
    "sizes",
    [(8, 8, 1, 0, 8), (8, 8, 0, -1, 8), (8, 8, 0, 0, 0), (8, 8, 0, 0, 9), (70_000, 8, 0, 0, 8), (9, 9, 0, 0, 9)],
)
def test_windows_that_do_not_fit_are_refused(sizes):
    out = np.full((8, 8, 3), 7, np.uint8)
    assert compiled.resize(np.zeros((5, 5, 3), np.uint8), out, *sizes, True, False) is False
    assert (out == 7).all()


@needs_compiler
def test_pixels_that_lie_otherwise_in_memory_are_refused():
    out = np.empty((4, 4, 3), np.uint8)
    planes = np.zeros((3, 9, 9), np.uint8).transpose(1, 2, 0)
    for pixels in (planes, np.zeros((9, 9, 4), np.uint8)[:, :, :3], np.zeros((9, 9, 3), np.uint8)[:, ::-1]):
        assert compiled.resize(pixels, out, 4, 4, 0, 0, 4, True, False) is False


def test_without_the_compiled_resize_torch_writes_the_same_row(photos, monkeypatch):
    pixels, transform = random_pixels(np.random.default_rng(3), 90, 70), Transform(size=32)
    first, second = np.empty((32, 32, 3), np.uint8), np.empty((32, 32, 3), np.uint8)
    resize_into(first, pixels, flip=True, transform=transform)
    monkeypatch.setattr(compiled, "resize", None)
    resize_into(second, pixels, flip=True, transform=transform)
    assert np.array_equal(first, second)
