"""`tempera bench loader` as a command: what it prints and how it ends."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from deploy.cli import main
from loader import ImageSample, build_shards
from loader.bench import images
from loader.bench.images import sweep_dali


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    import io

    from PIL import Image
    from sklearn.datasets import load_sample_images

    encoded = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).resize((320, 240)).save(encoded, "jpeg")
    build_shards([ImageSample(f"{number}", encoded.getvalue()) for number in range(8)], tmp_path / "tars")
    return tmp_path / "tars"


def test_the_gpu_sweep_is_a_command_that_prints_every_point(tars, capsys, monkeypatch):
    """DALI's CPU device stands in for the GPU; all else is what runs beside one."""
    monkeypatch.setattr(images.torch.cuda, "is_available", lambda: True)
    asked: list[int] = []

    def sweep(index, seconds, *, device_id, say):
        asked.append(device_id)
        return sweep_dali(index, 0.05, device_id=None, say=say, threads=(1, 2), loads=(0.0, 0.65))

    monkeypatch.setattr(images, "sweep_dali", sweep)
    monkeypatch.setattr("loader.bench.images.rate", functools.partial(_short, images.rate))
    assert main(["bench", "loader", "--images", str(tars), "--device", "cuda", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert asked == [0]
    assert set(report) == {"raw_decode", "gpu"}
    assert [(point["threads"], point["hw_decoder_load"]) for point in report["gpu"]] == [
        (threads, load) for threads in (1, 2) for load in (0.0, 0.65)
    ]
    for point in report["gpu"]:
        assert set(point) == {"threads", "hw_decoder_load", "images_per_s", "host_cpus", "gpu_memory_mb"}
    assert main(["bench", "loader", "--images", str(tars), "--device", "cuda"]) == 0
    shown = capsys.readouterr().out
    assert "DALI on the GPU" in shown
    assert shown.count("0.65") == 2


def _short(rate, source, seconds, **options):
    return rate(source, min(seconds, 0.05), **options)


def test_a_gpu_that_is_not_there_is_one_clear_line(tars, capsys, monkeypatch):
    monkeypatch.setattr(images.torch.cuda, "is_available", lambda: False)
    assert main(["bench", "loader", "--images", str(tars), "--device", "cuda"]) == 2
    assert "device cuda needs a GPU and its driver" in capsys.readouterr().err
