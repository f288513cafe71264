from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from loader.bench import bench_loader, probabilities, rate, rates
from loader.bench_peers import PEERS
from loader.memory import keep_freed_memory


@pytest.mark.parametrize("effective_size", [0.61, 0.25, 0.12])
@pytest.mark.parametrize("num_samples", [200, 20_000])
def test_probabilities_have_the_effective_size_asked_for(num_samples, effective_size):
    probability = probabilities(num_samples, effective_size)
    assert probability.sum() == pytest.approx(1)
    drawn = -np.expm1(num_samples * np.log1p(-probability)).mean()
    assert drawn == pytest.approx(effective_size, abs=1e-3)


def test_a_rate_leaves_out_the_warm_up(monkeypatch):
    clock = itertools.count(0, 0.1)
    monkeypatch.setattr("loader.bench.time.perf_counter", lambda: next(clock))
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


def test_freed_memory_can_be_kept():
    assert keep_freed_memory() in (True, False)
