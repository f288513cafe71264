"""Loaders as Ray actors: the same digests as in process, through kills and scaling. One Ray for all of these tests."""

# Ray reads its authentication settings when it is imported, so every import of it follows the fixture that sets them.

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest

from loader import (
    BatchStream,
    LoaderConfig,
    LoaderLost,
    LoaderWorker,
    LocalLoaders,
    ScalePolicy,
    StreamConfig,
    Transform,
)
from tests.bench.digests import digest, digests
from tests.loader.test_ring import free_bytes
from tests.local_ray import local_ray as started_ray
from tests.runs import wait_for

CONFIG = StreamConfig(
    seed=5, global_batch=64, total_steps=24, window_steps=8, transform=Transform(size=32), stall_timeout_s=150
)
"""A busy machine may take a minute to start a loader or a fleet again."""
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def local_ray():
    with started_ray() as ray:
        yield ray


@pytest.fixture(scope="module")
def fleet(local_ray, digit_index, tmp_path_factory):
    from loader.fleet.actors import start_fleet

    memory = tmp_path_factory.mktemp("fleet") / "fleet.json"
    client = start_fleet(digit_index.path, LoaderConfig(), size=2, num_cpus=0, memory=memory)
    yield client
    client.close()


def wait_ready(fleet, size: int):
    names = [f"loader-{number}" for number in range(size)]
    wait_for(lambda: sorted(fleet.members()) == names, f"{size} loaders")


def status(fleet):
    """The fleet's status, or None while it does not answer."""
    with suppress(LoaderLost):
        return fleet.status()


@pytest.fixture(scope="module")
def expected(digit_index, random_windows):
    pool = LocalLoaders([LoaderWorker(digit_index.path, LoaderConfig())])
    result = digest(BatchStream(random_windows(1797, CONFIG), pool, CONFIG))
    pool.close()
    return result


def stream_over(fleet, random_windows, config: StreamConfig = CONFIG, **options: int) -> BatchStream:
    from loader.actors import RayLoaders

    return BatchStream(random_windows(1797, config), RayLoaders(fleet, **options), config)


@pytest.mark.parametrize("ring_bytes", [0, 1 << 18, 256 << 20], ids=["object store", "small ring", "ring"])
def test_actors_give_the_pixels_of_the_process(fleet, random_windows, expected, ring_bytes):
    assert digest(stream_over(fleet, random_windows, ring_bytes=ring_bytes)) == expected


def test_a_ring_is_used_and_all_its_memory_comes_back(fleet, random_windows):
    from loader.actors import RayLoaders

    pool = RayLoaders(fleet)
    capacity = free_bytes(pool._ring)
    used = []
    for _ in range(3):
        for batch in BatchStream(random_windows(1797, CONFIG), pool, CONFIG):
            # Read only: a ring is for one thread, and the stream's own is at work.
            used.append(capacity - sum(size for _, size in pool._ring._free))
            if batch.step == 10:
                break
    assert max(used) > 0

    wait_for(lambda: free_bytes(pool._ring) == capacity, "all memory of the ring")


def test_status_names_the_processes(fleet):
    wait_for(lambda: all("pid" in loader for loader in fleet.status()["loaders"]), "process ids")
    loaders = fleet.status()["loaders"]
    assert [loader["name"] for loader in loaders] == ["loader-0", "loader-1"]
    for loader in loaders:
        os.kill(loader["pid"], 0)
        assert loader["state"] == "ready"
        assert loader["images_per_s"] >= 0


def test_a_loader_killed_under_load_changes_nothing_and_is_replaced(fleet, random_windows, expected):
    victim = fleet.status()["loaders"][0]["pid"]
    seen = len(fleet.events())
    batches = []
    for batch in stream_over(fleet, random_windows):
        batches.append(batch)
        if batch.step == 3:
            os.kill(victim, signal.SIGKILL)
    assert digest(batches) == expected
    wait_ready(fleet, 2)
    wait_for(lambda: fleet.status()["loaders"][0].get("pid") not in (None, victim), "another process")
    assert fleet.status()["loaders"][0]["restarts"] >= 1
    kinds = [event.kind for event in fleet.events(after=seen)]
    assert kinds[:2] == ["loader_lost", "loader_started"]


def test_scaling_under_load_changes_nothing(fleet, random_windows, expected):
    batches = []
    for batch in stream_over(fleet, random_windows):
        batches.append(batch)
        if batch.step == 2:
            assert fleet.scale(3, author="test", reason="up").size == 3
            wait_ready(fleet, 3)
        if batch.step == 12:
            fleet.scale(1, author="test", reason="down")
            wait_ready(fleet, 1)
    assert digest(batches) == expected
    fleet.scale(2, author="test")
    wait_ready(fleet, 2)


def test_a_killed_fleet_comes_back_at_its_last_size_and_no_draw_is_lost(fleet, random_windows, expected):
    fleet.scale(1, author="mira", reason="a try")
    wait_ready(fleet, 1)
    seen = fleet.events()[-1].sequence
    batches = []
    for batch in stream_over(fleet, random_windows):
        batches.append(batch)
        if batch.step == 4:
            os.kill(fleet.status()["pid"], signal.SIGKILL)
    assert digest(batches) == expected
    found = wait_for(lambda: status(fleet), "an answer of the fleet")
    assert (found["size"], found["author"], found["reason"]) == (1, "mira", "a try")
    assert next(event.kind for event in fleet.events(after=seen)) == "fleet_restarted"
    fleet.scale(2, author="test")
    wait_ready(fleet, 2)


def test_a_fleet_with_a_policy_grows_when_a_trainer_waits(local_ray, digit_index):
    from loader.fleet.actors import start_fleet

    policy = ScalePolicy(max_size=2, patience=1, cooldown_s=0, period_s=0)
    client = start_fleet(digit_index.path, LoaderConfig(), size=1, name="elastic", num_cpus=0, policy=policy)
    client.actor.call.remote("observe", 0.4)
    wait_for(lambda: client.status()["size"] == 2, "a second loader")
    assert client.status()["author"] == "fleet"
    assert client.status()["reason"] == "trainers wait for 40% of their time, over 5%"
    client.close()


def test_errors_of_a_loader_keep_their_type(fleet, random_windows):
    config = replace(CONFIG, total_steps=1)
    from loader.actors import RayLoaders

    with pytest.raises(ValueError, match="sample ids must be in"):
        next(iter(BatchStream(random_windows(10**6, config), RayLoaders(fleet), config)))
    with pytest.raises(ValueError, match="number of loaders"):
        fleet.scale(0, author="test")


def test_shards_built_over_ray_are_the_same(local_ray, photos, tmp_path):
    from deploy.launch.ray_tasks import run_tasks
    from loader import build_dataset, list_folder

    (tmp_path / "in").mkdir()
    for number, photo in enumerate(photos):
        (tmp_path / "in" / f"{number:02d}.jpg").write_bytes(photo)
    listing = list_folder(tmp_path / "in")
    build_dataset(listing, tmp_path / "here", samples_per_shard=9)
    build_dataset(listing, tmp_path / "ray", samples_per_shard=9, run=partial(run_tasks, workers=2))
    names = [path.name for path in sorted((tmp_path / "here").iterdir())]
    assert [path.name for path in sorted((tmp_path / "ray").iterdir())] == names
    assert all((tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes() for name in names)


def test_the_process_of_the_fleet_never_imports_torch(fleet):
    import ray

    heavy = fleet.actor.__ray_call__.remote(lambda self: sorted({"torch", "timm", "matplotlib"} & {*sys.modules}))
    assert ray.get(heavy, timeout=60) == []


def test_the_fleet_is_found_by_name(fleet, local_ray):
    from loader.fleet.actors import connect_fleet

    assert connect_fleet().status()["size"] == 2
    with pytest.raises(LoaderLost, match="no loader fleet named 'nobody'"):
        connect_fleet("nobody")


def test_loaders_that_cannot_start_are_an_error_that_says_why(local_ray, tmp_path):
    from loader.fleet.actors import start_fleet

    with pytest.raises(LoaderLost, match=r"cannot start.*no sample index at"):
        start_fleet(tmp_path / "none.parquet", LoaderConfig(), size=1, name="broken", num_cpus=0)


def test_draws_have_one_digest_through_fleets_of_any_size_and_through_one_that_is_scaled(local_ray, photo_index):
    report = digests(images=photo_index.path.parent, sizes=(1, 2), course=(2, 3, 1))
    assert list(report["digests"]) == ["in process", "1 loaders", "2 loaders", "2 -> 3 -> 1 loaders"]
    assert report["equal"], report["digests"]
    assert report["served"] == 3
    assert report["fingerprint"] == photo_index.fingerprint


def test_the_benchmark_reports_every_figure(local_ray, photo_index):
    from loader.bench.images import bench_loader

    report = bench_loader(photo_index.path.parent, seconds=0.2)
    figures = ("raw_decode", "in_process", "service", "cached", "peers")
    assert tuple(name for name in report if name in figures) == figures
    assert set(report) - set(figures) == {"object_store", "cache_hit_rate", "index"}
    sizes = {"0.61", "0.25", "0.12"}
    assert set(report["cached"]) == set(report["object_store"]["cached"]) == set(report["cache_hit_rate"]) == sizes
    numbers = [report[name] for name in ("raw_decode", "in_process", "service")] + list(report["cached"].values())
    assert all(isinstance(number, float) and number > 0 for number in numbers)
    assert all(0 <= rate <= 1 for rate in report["cache_hit_rate"].values())
    assert report["peers"] == {}
