from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from loader.bench.images import bench_loader, probabilities, sweep_dali
from loader.bench.index import bench_index
from loader.bench.peers import PEERS
from loader.bench.rates import rate, rates
from loader.decode.memory import keep_freed_memory


@pytest.mark.parametrize("effective_size", [0.61, 0.25, 0.12])
@pytest.mark.parametrize("num_samples", [200, 20_000])
def test_probabilities_have_the_effective_size_asked_for(num_samples, effective_size):
    probability = probabilities(num_samples, effective_size)
    assert probability.sum() == pytest.approx(1)
    drawn = -np.expm1(num_samples * np.log1p(-probability)).mean()
    assert drawn == pytest.approx(effective_size, abs=1e-3)


def test_a_rate_leaves_out_the_warm_up(monkeypatch):
    clock = itertools.count(0, 0.1)
    monkeypatch.setattr("loader.bench.rates.time.perf_counter", lambda: next(clock))
    slow_then_fast = itertools.chain([1] * 3, itertools.repeat(5))
    assert rate(slow_then_fast, 1.0) == pytest.approx(50, rel=0.1)


def test_sources_take_turns_and_are_counted_apart():
    order: list[str] = []

    def source(name: str, count: int, sleep_s: float):
        while True:
            time.sleep(sleep_s)
            order.append(name)
            yield count

    found = rates({"a": source("a", 1, 0.01), "b": source("b", 10, 0.01)}, 0.3, slice_s=0.05)
    assert found["b"] / found["a"] == pytest.approx(10, rel=0.5)
    turns = [name for name, _ in itertools.groupby(order)]
    assert len(turns) >= 8


def test_a_measurement_that_ends_early_is_an_error():
    with pytest.raises(ValueError, match="too few images"):
        rate([1, 2], 1.0)


@pytest.mark.parametrize("name", ["torch_pil", "torchvision_v2", "webdataset", "dali_cpu"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_installed_peer_gives_batches(photos, name):
    with PEERS[name](photos, 1) as batches:
        assert next(iter(batches)) == 64


def test_wrong_devices_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="device must be cpu or cuda"):
        bench_loader(tmp_path, device="tpu")
    with pytest.raises(ValueError, match="no images under"):
        bench_loader(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_sweep_needs_a_gpu(photo_index):
    with pytest.raises(ValueError, match="needs a GPU"):
        bench_loader(photo_index.path.parent, device="cuda")


def test_the_gpu_sweep_measures_every_point(photo_index):
    said: list[str] = []
    points = sweep_dali(photo_index, 0.05, device_id=None, say=said.append, threads=(1, 2), loads=(0.5,))
    assert [(point["threads"], point["hw_decoder_load"]) for point in points] == [(1, 0.5), (2, 0.5)]
    for point in points:
        assert point["images_per_s"] > 0
        assert point["host_cpus"] > 0
        assert point["gpu_memory_mb"] == 0
    assert len(said) == 2


def test_the_index_is_measured_in_a_process_of_its_own(photo_index, tmp_path):
    tars = [Path(url) for url in photo_index.shard_urls]
    figures = bench_index(tars, tmp_path, seconds=0.05, num_samples=5000)
    assert set(figures) == {"index_build_mb_per_s", "index_open_s", "index_open_mb", "index_open_peak_mb"}
    assert figures["index_build_mb_per_s"] > 0
    assert 0 < figures["index_open_s"] < 10


def test_freed_memory_can_be_kept():
    assert keep_freed_memory() in (True, False)
