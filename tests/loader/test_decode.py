from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms import functional as pil_functional
from torchvision.transforms import v2

from loader import BadSampleError, Transform
from loader.decode import compiled
from loader.decode.cpu import CpuDecoder, decode_image, decode_top
from loader.decode.decoder import EncodedImage
from loader.decode.header import read_header
from loader.decode.resize import resize_window
from tests.samples import encoded


def opened(data: bytes, box: tuple[int, int, int, int] | None = None, *, flip: bool = False) -> EncodedImage:
    header = read_header(data, max_pixels=10**8)
    return EncodedImage(0, data, header, np.array(box or (0, 0, header.height, header.width), np.int32), flip)


def decode_one(image: EncodedImage, transform: Transform) -> torch.Tensor:
    out = rows(1, transform.size)
    assert CpuDecoder(1).decode([image], transform, out) == [None]
    return torch.from_numpy(out[0]).permute(2, 0, 1)


def rows(num_images: int, size: int) -> np.ndarray:
    return np.empty((num_images, size, size, 3), np.uint8)


def pil(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("flip", [False, True])
def test_random_crops_equal_torchvision_on_the_same_box(photos, interpolation, flip):
    transform = Transform(size=64, interpolation=interpolation)
    for photo in photos:
        image = opened(photo)
        box = (3, 5, image.header.height // 2 + 7, image.header.width // 2 + 9)
        pixels = torch.from_numpy(decode_image(photo, image.header)).permute(2, 0, 1)
        mode = v2.InterpolationMode(interpolation)
        expected = v2.functional.resized_crop(pixels, *box, [64, 64], mode, antialias=True)
        expected = v2.functional.horizontal_flip(expected) if flip else expected
        assert torch.equal(decode_one(opened(photo, box, flip=flip), transform), expected)


def test_random_crops_are_within_rounding_of_pillow(photos):
    differences = []
    for photo in photos:
        header = read_header(photo, max_pixels=10**8)
        box = (10, 8, header.height - 20, header.width - 20)
        expected = pil_functional.resized_crop(pil(photo), *box, [224, 224], v2.InterpolationMode.BICUBIC)
        ours = decode_one(opened(photo, box), Transform())
        differences.append((ours.int() - v2.functional.pil_to_tensor(expected).int()).abs())
    # Both keep 8 bits between the passes; torch's weights have 16 bits, Pillow's 22.
    stacked = torch.stack(differences).float()
    assert stacked.mean() < 0.25
    assert (stacked > 2).float().mean() < 1e-4


def test_center_crops_equal_torchvision(photos):
    transform = Transform(kind="center_crop", size=48, short_side=57)
    recipe = v2.Compose([v2.Resize(57, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(48)])
    for photo in photos:
        image = opened(photo)
        expected = recipe(torch.from_numpy(decode_image(photo, image.header)).permute(2, 0, 1))
        assert torch.equal(decode_one(image, transform), expected)


def test_pixels_equal_pillow_for_every_kind_of_jpeg():
    # Pillow carries the same decoder; colour conversion and upsampling are what could differ.
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((75, 50), Image.Resampling.BICUBIC)
    for mode, options in (("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})):
        data = encoded(smooth.convert(mode), quality=95, **options)
        ours = decode_image(data, read_header(data, max_pixels=10**6)).astype(int)
        assert np.abs(ours - np.asarray(pil(data))).max() <= 1, (mode, options)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_png_and_webp_decode_as_pillow_does(kind):
    data = encoded(Image.new("RGBA", (20, 10), (255, 0, 0, 128)), kind)
    assert (decode_image(data, read_header(data, max_pixels=10**6)) == np.asarray(pil(data))).all()


def test_the_orientation_tag_is_not_applied(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (40, 20)), exif=exif)
    assert decode_image(data, read_header(data, max_pixels=10**6)).shape == (20, 40, 3)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(375, 500, (256, 341)), (500, 375, (341, 256)), (100, 100, (256, 256))]
)
def test_the_short_side_is_resized_as_torchvision_does(height, width, expected):
    window = resize_window(height, width, Transform(kind="center_crop"))
    assert (window.height, window.width) == expected


def test_a_truncated_image_is_a_bad_sample(photos):
    cut = photos[0][: len(photos[0]) // 2]
    with pytest.raises(BadSampleError, match="JPEG does not decode"):
        decode_image(cut, read_header(cut, max_pixels=10**8))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))
    png = encoded(noise, "PNG")[:900]
    with pytest.raises(BadSampleError, match="image does not decode"):
        decode_image(png, read_header(png, max_pixels=10**8))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_the_top_of_an_image_has_the_pixels_of_the_whole(photos, subsampling):
    pixels = np.ascontiguousarray(np.asarray(pil(photos[2]))[:117, :131])
    if subsampling == "Gray":
        data = simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    else:
        data = simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling=subsampling)
    header = read_header(data, max_pixels=10**6)
    whole = decode_image(data, header)
    for num_rows in range(1, len(whole) + 1):
        top = decode_top(data, header, num_rows)
        assert len(top) <= num_rows + 8
        assert (top[:num_rows] == whole[:num_rows]).all()


def test_a_progressive_image_is_decoded_whole():
    data = encoded(Image.new("RGB", (64, 64), (9, 99, 200)), progressive=True)
    assert decode_top(data, read_header(data, max_pixels=10**6), 3).shape == (64, 64, 3)


def jpeg_variants(pixels: np.ndarray) -> dict[str, bytes]:
    gray = simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    variants = {"gray": gray} | {
        kind: simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling=kind)
        for kind in ("444", "422", "420", "440", "411")
    }
    rotated = Image.Exif()
    rotated[0x0112] = 6
    options = {
        "restarts": {"restart_marker_blocks": 3},
        "stored as rgb": {"keep_rgb": True},
        "progressive": {"progressive": True},
        "rotated": {"exif": rotated},
        "profile": {"icc_profile": bytes(3000)},
    }
    return variants | {name: encoded(Image.fromarray(pixels), quality=90, **option) for name, option in options.items()}


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_decoded_box_has_the_pixels_of_the_whole(photos, is_compiled, monkeypatch):
    if not is_compiled:
        monkeypatch.setattr(compiled, "decode_box", None)
    decoder, rng = CpuDecoder(1), np.random.default_rng(0)
    pixels = np.ascontiguousarray(np.asarray(pil(photos[2]))[:117, :131])
    for name, data in jpeg_variants(pixels).items():
        header = read_header(data, max_pixels=10**6)
        whole = decode_image(data, header)
        corners = rng.integers(0, (117, 131), (60, 2))
        for top, left in [(0, 0), (16, 16), (48, 0), *corners.tolist()]:
            height, width = int(rng.integers(1, 118 - top)), int(rng.integers(1, 132 - left))
            box = np.array([top, left, height, width], np.int32)
            assert (decoder.decode_box(data, header, box) == whole[top : top + height, left : left + width]).all(), name


def test_the_second_decoding_gives_the_bytes_of_the_first(photos):
    transform = Transform(size=50)
    for photo in photos[:6]:
        image = opened(photo, (4, 6, 40, 30), flip=True)
        first, second = rows(1, 50), rows(1, 50)
        fresh = CpuDecoder(1)
        fresh.decode([image], transform, first)
        fresh.decode([image], transform, second)
        assert (first == second).all()


def test_a_damaged_image_is_bad_every_time(photos):
    decoder, cut_short = CpuDecoder(1), photos[0][: len(photos[0]) * 3 // 4]
    image = EncodedImage(
        0, cut_short, read_header(photos[0], max_pixels=10**8), np.array([0, 0, 8, 8], np.int32), flip=False
    )
    for _ in range(3):
        assert "does not decode" in decoder.decode([image], Transform(size=8), rows(1, 8))[0]


@pytest.fixture(scope="module")
def dali():
    from loader.decode.dali import DaliDecoder

    return DaliDecoder(num_threads=1, device_id=None, hw_decoder_load=0.65)


@pytest.mark.parametrize(
    "transform",
    [
        Transform(size=96),
        Transform(size=64, interpolation="bilinear"),
        Transform(kind="center_crop", size=48, short_side=57),
    ],
    ids=["bicubic", "bilinear", "center_crop"],
)
def test_dali_differs_from_the_reference_by_rounding(photos, dali, transform):
    images = [opened(p) for p in photos]
    if transform.kind == "random_resized_crop":
        images = [
            opened(p, (3, 4, e.header.height - 9, e.header.width - 7), flip=bool(i % 2))
            for i, (p, e) in enumerate(zip(photos, images, strict=True))
        ]
    ours, theirs = rows(len(images), transform.size), rows(len(images), transform.size)
    assert (
        CpuDecoder(1).decode(images, transform, ours) == dali.decode(images, transform, theirs) == [None] * len(images)
    )
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.mean(axis=(1, 2, 3)).max() < 0.6


def test_dali_names_the_bad_images_of_a_batch_and_decodes_the_others(photos, dali):
    cut = EncodedImage(
        0, photos[1][:600] + bytes(20), read_header(photos[1], max_pixels=10**8), opened(photos[1]).box, flip=False
    )
    images = [opened(photos[0]), cut, opened(photos[2])]
    transform, out = Transform(size=32), rows(3, 32)
    reasons = dali.decode(images, transform, out)
    assert [reason is None for reason in reasons] == [True, False, True]
    assert "does not decode" in reasons[1]
    alone = rows(1, 32)
    assert dali.decode(images[2:], transform, alone) == [None]
    assert (alone[0] == out[2]).all()


def test_dali_gives_the_same_pixels_when_several_threads_decode_at_once(photos, dali):
    transform = Transform(size=48)
    batches = [[opened(photo) for photo in photos[at : at + 4]] for at in range(0, 16, 4)]
    alone, together = [rows(4, 48) for _ in batches], [rows(4, 48) for _ in batches]
    for images, out in zip(batches, alone, strict=True):
        assert dali.decode(images, transform, out) == [None] * 4
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            reasons = list(threads.map(dali.decode, batches, [transform] * 4, together))
            assert reasons == [[None] * 4] * 4
            assert (np.stack(together) == np.stack(alone)).all()


def test_a_decoder_that_was_not_compiled_is_announced_once(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "missing", "no compiler")
    compiled.warn_if_missing.cache_clear()
    for _ in range(3):
        CpuDecoder(1)
    compiled.warn_if_missing.cache_clear()
    assert [record.message for record in caplog.records].count(
        "loaders are about 0.6 times as fast without Tempera's compiled decoder (no compiler)"
    ) == 1
