"""The compiled decoder of boxes against libjpeg-turbo, which it must equal to the bit or leave the image to."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from loader.decode import compiled
from tests.samples import encoded

pytestmark = pytest.mark.skipif(
    compiled.decode_box is None and not (platform.machine() == "x86_64" and shutil.which("cc")),
    reason="the decoder is compiled where there is a C compiler for x86-64",
)


def decode_box(data: bytes, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """Pixels of a (top, left, height, width) box, or None; nothing beside them is written."""
    size = 3 * box[2] * box[3]
    memory = np.full(size + 128, 0xA5, np.uint8)
    done = compiled.decode_box(data, *box, memory[64 : 64 + size])
    assert (memory[:64] == 0xA5).all()
    assert (memory[64 + size :] == 0xA5).all()
    return memory[64 : 64 + size].reshape(box[2], box[3], 3) if done else None


def random_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    top, left = int(rng.integers(height)), int(rng.integers(width))
    return top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))


def cut(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def pictures() -> list[bytes]:
    """Small JPEGs of every subsampling, of several qualities, smooth and noisy, with and without restart markers."""
    rng = np.random.default_rng(3)
    found = []
    for height, width in ((1, 7), (17, 33), (40, 56), (75, 101)):
        smooth = Image.fromarray(rng.integers(0, 255, (5, 6, 3), np.uint8)).resize((width, height))
        for pixels in (np.ascontiguousarray(smooth), rng.integers(0, 256, (height, width, 3), np.uint8)):
            for kind in ("444", "422", "420", "440"):
                found += [simplejpeg.encode_jpeg(pixels, quality=q, colorsubsampling=kind) for q in (8, 75, 100)]
            gray = np.ascontiguousarray(pixels[:, :, :1])
            found.append(simplejpeg.encode_jpeg(gray, colorspace="GRAY", colorsubsampling="Gray"))
            found.append(encoded(Image.fromarray(pixels), restart_marker_blocks=2, optimize=True))
    return found


def test_it_was_compiled():
    assert compiled.decode_box is not None


def test_boxes_have_the_pixels_of_libjpeg_turbo():
    rng = np.random.default_rng(0)
    for data in pictures():
        whole = simplejpeg.decode_jpeg(data)
        for box in [(0, 0, *whole.shape[:2]), *(random_box(rng, *whole.shape[:2]) for _ in range(12))]:
            pixels = decode_box(data, box)
            # Chroma of at most two samples across is repeated instead of interpolated: left to the other decoder.
            assert (pixels is None and whole.shape[1] <= 4) or np.array_equal(pixels, cut(whole, box))


def test_damage_that_libjpeg_turbo_takes_for_sound_gives_its_pixels():
    rng, seeds, compared = np.random.default_rng(1), pictures(), 0
    for number in range(12_000):
        data = np.frombuffer(seeds[number % len(seeds)], np.uint8).copy()
        # Half of the changes are to the headers: other quantizers and codes reach sums that no photograph has.
        near = 700 if number % 2 else len(data)
        for at in rng.integers(2, min(near, len(data)), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            whole = simplejpeg.decode_jpeg(data.tobytes(), strict=True)
        except ValueError:
            continue
        if whole.size > 300_000:
            continue
        box = random_box(rng, *whole.shape[:2])
        pixels = decode_box(data.tobytes(), box)
        if pixels is not None:
            compared += 1
            assert np.array_equal(pixels, cut(whole, box))
    assert compared > 2_000


def test_damaged_files_are_refused_or_decoded_but_write_nowhere_else():
    rng, seeds = np.random.default_rng(2), pictures()
    for number in range(6_000):
        data = np.frombuffer(seeds[number % len(seeds)], np.uint8).copy()
        for at in rng.integers(0, len(data), 6):
            data[at] = rng.choice([0, 0x7F, 0xFF, rng.integers(256)])
        decode_box(data[: rng.integers(len(data) + 1)].tobytes(), random_box(rng, 75, 101))


def test_sanitizers_find_no_wrong_access_in_damaged_files(tmp_path):
    compiler, here = shutil.which("cc"), Path(__file__).parent
    program = tmp_path / "sanitized"
    sources = [here / "sanitized.c", *(here.parents[1] / "loader/decode/native").glob("*.c")]
    command = [compiler, "-std=gnu11", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    able = compiler and subprocess.run(
        [*command, "-o", program, "-x", "c", "-"],
        input=b"int main(void) { return 0; }",
        capture_output=True,
        check=False,
    )
    if not able or able.returncode:
        pytest.skip("no C compiler with sanitizers")
    subprocess.run([*command, "-o", program, *(s for s in sources if s.name != "module.c"), "-lm"], check=True)
    files = []
    for number, data in enumerate(pictures()):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(data)
    run = subprocess.run([program, "1", "150", *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    runs, decoded = (int(word) for word in run.stdout.split() if word.isdigit())
    assert runs == 150 * len(files)
    assert decoded > runs // 20


@pytest.mark.parametrize(
    "box", [(-1, 0, 8, 8), (0, -1, 8, 8), (0, 0, 0, 8), (0, 0, 41, 8), (0, 50, 8, 7), (2**31 - 1, 0, 2**31 - 1, 1)]
)
def test_a_box_outside_the_image_is_refused(box):
    data = simplejpeg.encode_jpeg(np.zeros((40, 56, 3), np.uint8))
    assert compiled.decode_box(data, *box, np.empty(10_000, np.uint8)) is False


def test_memory_that_is_too_small_is_refused():
    data = simplejpeg.encode_jpeg(np.zeros((40, 56, 3), np.uint8))
    assert compiled.decode_box(data, 0, 0, 40, 56, np.empty(3 * 40 * 56 - 1, np.uint8)) is False
    with pytest.raises(TypeError, match="read-write"):
        compiled.decode_box(data, 0, 0, 1, 1, np.empty(8, np.uint8).data.toreadonly())


@pytest.mark.parametrize("option", [{"progressive": True}, {"keep_rgb": True}, {"subsampling": "4:1:1"}, {}])
def test_what_it_does_not_decode_is_left_to_the_other_decoder(option):
    if option == {"subsampling": "4:1:1"}:
        data = simplejpeg.encode_jpeg(np.zeros((40, 56, 3), np.uint8), colorsubsampling="411")
    else:
        data = encoded(Image.new("RGB" if option else "CMYK", (56, 40)), **option)
    assert decode_box(data, (0, 0, 8, 8)) is None


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n", bytes(500)])
def test_what_is_no_jpeg_is_refused(data):
    assert decode_box(data, (0, 0, 1, 1)) is None
