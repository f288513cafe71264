from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loader import BatchSpec, LoaderConfig, LoaderWorker, ShardIndex, Transform
from loader.decode.cpu import crop, decode_image
from loader.decode.crops import boxes, flips
from loader.decode.header import read_header
from loader.decode.resize import resize_into

TRANSFORM = Transform(size=40)


def make_spec(ids: object, *, first_draw: int = 0, seed: int = 11, transform: Transform = TRANSFORM) -> BatchSpec:
    sample_ids = np.asarray(ids, np.int64)
    draws = first_draw + np.arange(len(sample_ids))
    return BatchSpec(sample_ids=sample_ids, draws=draws, seed=seed, transform=transform)


@pytest.fixture
def worker(photo_index: ShardIndex):
    with LoaderWorker(photo_index.path, LoaderConfig(threads=2)) as worker:
        yield worker


def test_pixels_are_channels_last_and_equal_the_reference(worker, photos):
    spec = make_spec(range(24))
    pixels = worker.load(spec)
    assert pixels.images.shape == (24, 3, 40, 40)
    assert pixels.images.transpose(0, 2, 3, 1).flags.c_contiguous
    box = boxes(11, spec.draws, TRANSFORM, width=worker.index.width, height=worker.index.height)
    flip = flips(11, spec.draws, TRANSFORM)
    for row, photo in enumerate(photos):
        expected = np.empty((40, 40, 3), np.uint8)
        raw = decode_image(photo, read_header(photo, max_pixels=10**8))
        resize_into(expected, crop(raw, box[row]), flip=bool(flip[row]), transform=TRANSFORM)
        assert (pixels.images[row].transpose(1, 2, 0) == expected).all()


def test_pixels_do_not_depend_on_threads_grouping_or_order(photo_index, worker):
    spec = make_spec(np.random.default_rng(0).integers(0, 24, 61))
    whole = worker.load(spec).images
    with LoaderWorker(photo_index.path, LoaderConfig(threads=1)) as single:
        assert (single.load(spec).images == whole).all()
    rows = np.random.default_rng(1).permutation(61)[:17]
    part = replace(spec, sample_ids=spec.sample_ids[rows], draws=spec.draws[rows])
    assert (worker.load(part).images == whole[rows]).all()


def test_the_same_draw_gives_the_same_pixels_and_another_draw_others(worker):
    first, again = worker.load(make_spec([5, 5])).images, worker.load(make_spec([5, 5])).images
    assert (first == again).all()
    assert (first[0] != first[1]).any()
    assert (worker.load(make_spec([5], seed=12)).images[0] != first[0]).any()


def test_several_threads_may_load_at_once(worker):
    specs = [make_spec(range(24), first_draw=100 * number) for number in range(8)]
    alone = [worker.load(spec).images for spec in specs]
    together: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: worker.load(specs[i]).images})) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all((together[i] == alone[i]).all() for i in range(8))


def test_a_loader_of_one_thread_decodes_for_one_request_at_a_time(photo_index, monkeypatch):
    with LoaderWorker(photo_index.path, LoaderConfig(threads=1)) as worker:
        inside, most = [], []

        def watched(*args, load_rows=worker._load_rows):
            inside.append(threading.get_ident())
            most.append(len(set(inside)))
            try:
                return load_rows(*args)
            finally:
                inside.pop()

        monkeypatch.setattr(worker, "_load_rows", watched)
        threads = [threading.Thread(target=worker.load, args=(make_spec(range(24)),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(most) == 4 * 24
        assert max(most) == 1


def test_a_request_that_waits_for_storage_holds_the_next_up_for_a_moment_only(photo_index, monkeypatch):
    with LoaderWorker(photo_index.path, LoaderConfig(threads=1)) as worker:
        alone = worker.load(make_spec(range(24))).images
        storage = threading.Event()

        def stuck(plan, rgb, rows, load_rows=worker._load_rows):
            if plan.spec.draws[0] == 0:
                storage.wait(120)
            return load_rows(plan, rgb, rows)

        monkeypatch.setattr(worker, "_load_rows", stuck)
        answer: list[np.ndarray] = []
        waiting = threading.Thread(target=lambda: answer.append(worker.load(make_spec(range(24))).images))
        waiting.start()
        assert len(worker.load(make_spec(range(24), first_draw=100)).images) == 24
        assert not answer, "the other request is still stuck"
        storage.set()
        waiting.join(60)
        assert (answer[0] == alone).all()


@pytest.mark.parametrize("decoder", ["cpu", "dali"])
def test_bad_samples_are_reported_and_zero_and_touch_no_other_row(bad_photo_index, photo_index, decoder):
    spec = make_spec(range(24))
    with (
        LoaderWorker(bad_photo_index.path, LoaderConfig(decoder=decoder)) as damaged,
        LoaderWorker(photo_index.path, LoaderConfig(decoder=decoder)) as sound,
    ):
        pixels, expected = damaged.load(spec), sound.load(spec)
    assert [(bad.row, bad.sample_id, bad.draw, bad.key) for bad in pixels.bad if bad.row != 7] == [
        (3, 3, 3, "photo003"),
        (5, 5, 5, "photo005"),
    ]
    bad_rows = [bad.row for bad in pixels.bad]
    good = np.setdiff1d(np.arange(24), bad_rows)
    assert not pixels.images[bad_rows].any()
    assert (pixels.images[good] == expected.images[good]).all()


def test_reasons_say_what_is_wrong(bad_photo_index):
    with LoaderWorker(bad_photo_index.path, LoaderConfig()) as worker:
        reasons = {bad.row: bad.reason for bad in worker.load(make_spec(range(24))).bad}
    assert "not a JPEG, PNG or WebP: 0 bytes" in reasons[3]
    assert "not a JPEG, PNG or WebP: " in reasons[5]
    assert "JPEG does not decode" in reasons[7]


def test_images_over_the_limit_are_bad_samples(photo_index):
    with LoaderWorker(photo_index.path, LoaderConfig(max_pixels=1)) as worker:
        pixels = worker.load(make_spec([0]))
    assert "over 1 pixels" in pixels.bad[0].reason


@pytest.mark.parametrize("sample_id", [-1, 24])
def test_ids_outside_the_index_are_refused(worker, sample_id):
    with pytest.raises(ValueError, match=r"sample ids must be in 0\.\.23"):
        worker.load(make_spec([0, sample_id]))


REQUEST, CACHE_BYTES = 256, 4 << 20


def grown_bytes(index: str) -> tuple[int, int]:
    """Bytes that a loader's process gains by many requests, and those in its cache."""
    pages = Path("/proc/self/statm")
    with LoaderWorker(index, LoaderConfig(threads=2, cache_bytes=CACHE_BYTES)) as worker:
        worker.load(make_spec(range(2)))
        before = int(pages.read_text().split()[1])
        rng = np.random.default_rng(0)
        for number in range(20):
            spec = make_spec(rng.integers(0, 24, REQUEST), first_draw=number * REQUEST, transform=Transform(size=64))
            worker.load(replace(spec, probability=rng.random(REQUEST)))
        grown = int(pages.read_text().split()[1]) - before
        return grown * os.sysconf("SC_PAGE_SIZE"), int(worker.stats()["cache_bytes"])


def test_a_loader_stays_within_its_cache_and_a_request(photo_index):
    with multiprocessing.get_context("spawn").Pool(1) as child:
        grown, cached = child.apply_async(grown_bytes, (str(photo_index.path),)).get(120)
    assert 0 < cached <= CACHE_BYTES
    request = REQUEST * 3 * 64 * 64
    # A thread more costs the allocator's arena and the decoder's tables; twenty requests unheld would be 63 MB.
    assert grown < CACHE_BYTES + request + (24 << 20)


def test_stats_count_what_was_done(worker):
    worker.load(make_spec(range(10)))
    stats = worker.stats()
    assert (stats["images"], stats["bad"], stats["requests"]) == (10, 0, 1)
    assert stats["images_per_s"] > 0


def test_shards_beyond_the_descriptor_limit_are_reopened(photo_index, worker, monkeypatch):
    monkeypatch.setattr("loader.shards.reader.MAX_OPEN_SHARDS", 1)
    spec = make_spec(np.tile([0, 10, 20], 8))
    assert (worker.load(spec).images == worker.load(spec).images).all()
