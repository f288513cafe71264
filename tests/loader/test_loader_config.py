from __future__ import annotations

import pytest

from loader import LoaderConfig, StreamConfig, Transform


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "five_crop"}, "unknown transform kind 'five_crop'"),
        ({"interpolation": "nearest"}, "bicubic or bilinear"),
        ({"size": 0}, r"size must be in 1\.\.4096"),
        ({"scale": (0.0, 1.0)}, "scale must be"),
        ({"scale": (0.9, 0.2)}, "scale must be"),
        ({"ratio": (2.0, 1.0)}, "ratio must be"),
        ({"kind": "center_crop", "short_side": 100}, r"short_side must be at least size \(224\)"),
    ],
)
def test_wrong_transforms_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Transform(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads"),
        ({"cache_bytes": -1}, "cache_bytes"),
        ({"cache_bytes": 1, "decoder": "dali"}, "needs the cpu decoder"),
        ({"decoder": "gpu"}, "cpu or dali"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_wrong_loader_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"global_batch": 90, "world_size": 4}, r"divisible by world_size \(4\); got 90. Try 88 or 92"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0\.\.1"),
        ({"world_size": 0}, "world_size"),
        ({"global_batch": 0}, "global_batch"),
        ({"total_steps": -1}, "total_steps"),
        ({"window_steps": 0}, "window_steps"),
        ({"prefetch_steps": 0}, "prefetch_steps"),
        ({"min_request_images": 0}, "min_request_images"),
        ({"request_deadline_s": 0}, "request_deadline_s"),
        ({"stall_timeout_s": 0}, "stall_timeout_s"),
        ({"max_bad_share": 1.1}, "max_bad_share"),
    ],
)
def test_wrong_stream_configs_are_refused(options, message):
    valid = {"seed": 0, "global_batch": 64, "total_steps": 10, "transform": Transform()}
    with pytest.raises(ValueError, match=message):
        StreamConfig(**{**valid, **options})
