from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from loader import (
    BatchStream,
    FixedWindows,
    LoaderConfig,
    LoaderError,
    LoaderLost,
    LoaderWorker,
    LocalLoaders,
    ShardIndex,
    StreamConfig,
    StreamStalled,
    TooManyBadSamplesError,
    Transform,
)
from tests.runs import wait_for

CONFIG = StreamConfig(
    seed=3, global_batch=32, total_steps=20, window_steps=8, transform=Transform(size=24), request_deadline_s=20.0
)
"""On a busy machine no loader is late but those that hang."""


class FaultyLoaders(LocalLoaders):
    """Loaders in this process that can be killed, or hang, after a number of requests."""

    def __init__(self, workers, *, dies_after: dict[str, int] | None = None, hangs_after: dict[str, int] | None = None):
        super().__init__(workers)
        self.dies_after, self.hangs_after = dies_after or {}, hangs_after or {}
        self.served: dict[str, int] = {}
        self.freed = threading.Event()

    def members(self):
        return tuple(m for m in super().members() if self.served.get(m, 0) <= self.dies_after.get(m, 10**9))

    def submit(self, member, spec):
        served = self.served[member] = self.served.get(member, 0) + 1
        if served > self.dies_after.get(member, 10**9):
            return self._queues[member].submit(lose, member)
        if served > self.hangs_after.get(member, 10**9):
            return self._queues[member].submit(self.freed.wait)
        return super().submit(member, spec)

    def result(self, handle):
        pixels = super().result(handle)
        if pixels is True:
            raise LoaderLost("released from its hang")
        return pixels


def lose(member: str):
    raise LoaderLost(f"{member} was killed")


@pytest.fixture
def make_pool(photo_index: ShardIndex):
    pools = []

    def make(size: int, *, index: ShardIndex = photo_index, **faults: dict[str, int]) -> FaultyLoaders:
        pools.append(FaultyLoaders([LoaderWorker(index.path, LoaderConfig()) for _ in range(size)], **faults))
        return pools[-1]

    yield make
    for pool in pools:
        pool.freed.set()
        pool.close()


def lines(stream: BatchStream) -> list[tuple[int, int, str]]:
    """(draw, sample, hash of pixels) of every row that a stream delivers, in order."""
    return [
        (int(draw), int(sample), hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest())
        for batch in stream
        for draw, sample, image in zip(batch.draws, batch.sample_ids, batch.images, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(photo_index: ShardIndex, random_windows):
    pool = LocalLoaders([LoaderWorker(photo_index.path, LoaderConfig())])
    found = lines(BatchStream(random_windows(24, CONFIG), pool, CONFIG))
    pool.close()
    return found


def test_every_draw_is_delivered_once_in_order_with_its_probability_and_version(make_pool, random_windows):
    windows = random_windows(24, CONFIG)
    batches = list(BatchStream(windows, make_pool(2), CONFIG))
    assert [batch.step for batch in batches] == list(range(20))
    assert np.concatenate([batch.draws for batch in batches]).tolist() == list(range(20 * 32))
    for batch in batches:
        window = windows.window(batch.step // 8)
        rows = slice(batch.step % 8 * 32, (batch.step % 8 + 1) * 32)
        assert (batch.sample_ids == window.sample_ids[rows]).all()
        assert (batch.probability == window.probability[rows]).all()
        assert batch.version == window.version
        assert batch.images.shape == (32, 3, 24, 24)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_number_of_loaders_changes_nothing(make_pool, random_windows, expected, size):
    assert lines(BatchStream(random_windows(24, CONFIG), make_pool(size), CONFIG)) == expected


def test_a_killed_loader_changes_nothing(make_pool, random_windows, expected):
    pool = make_pool(3, dies_after={"local-1": 2})
    stream = BatchStream(random_windows(24, CONFIG), pool, CONFIG)
    assert lines(stream) == expected
    assert stream.stats()["rerouted"] >= 1
    assert pool.served["local-1"] == 3


def test_a_hanging_loader_changes_nothing_and_is_not_waited_for(make_pool, random_windows, expected):
    """The loader hangs for longer than the stream lives: every row of its requests comes from another."""
    config = replace(CONFIG, request_deadline_s=1.5)
    pool = make_pool(3, hangs_after={"local-1": 1})
    stream = BatchStream(random_windows(24, config), pool, config)
    assert lines(stream) == expected
    assert stream.stats()["hedged"] >= 1
    # It is asked once, then passed over while its answer is overdue.
    assert pool.served["local-1"] <= 4
    assert not pool.freed.is_set()


@pytest.mark.parametrize(
    "change", [{"prefetch_steps": 1}, {"prefetch_steps": 9}, {"min_request_images": 1}, {"min_request_images": 1000}]
)
def test_prefetching_and_grouping_change_nothing(make_pool, random_windows, expected, change):
    config = replace(CONFIG, **change)
    assert lines(BatchStream(random_windows(24, config), make_pool(2), config)) == expected


def test_ranks_share_the_draws_of_every_step(make_pool, random_windows, expected):
    parts = []
    for rank in range(4):
        config = replace(CONFIG, rank=rank, world_size=4)
        parts.append(lines(BatchStream(random_windows(24, config), make_pool(2), config)))
    steps = [[part[step * 8 : step * 8 + 8] for part in parts] for step in range(20)]
    assert [line for step in steps for part in step for line in part] == expected


@pytest.mark.parametrize("step", [0, 1, 7, 8, 13, 19, 20])
def test_resume_continues_the_uninterrupted_sequence(make_pool, random_windows, expected, step):
    stream = BatchStream(random_windows(24, CONFIG), make_pool(2), CONFIG)
    head = []
    if step:
        for batch in stream:
            head.extend(batch.draws.tolist())
            if stream.state_dict() == {"step": step}:
                break
    resumed = BatchStream(random_windows(24, CONFIG), make_pool(1), CONFIG)
    resumed.load_state_dict(stream.state_dict())
    assert head == [draw for draw, _, _ in expected[: step * 32]]
    assert lines(resumed) == expected[step * 32 :]


def test_leaving_the_loop_and_iterating_again_goes_on(make_pool, random_windows, expected):
    stream = BatchStream(random_windows(24, CONFIG), make_pool(2), CONFIG)
    draws = []
    while stream.state_dict()["step"] < 20:
        for batch in stream:
            draws.extend(batch.draws.tolist())
            break
    assert draws == [draw for draw, _, _ in expected]


def test_windows_are_asked_in_order_and_at_most_one_ahead(make_pool, random_windows):
    config = replace(CONFIG, total_steps=40, prefetch_steps=30)
    windows = random_windows(24, config)
    for batch in BatchStream(windows, make_pool(2), config):
        assert max(windows.asked) <= batch.step // 8 + 1
    assert windows.asked == sorted(windows.asked)
    assert set(windows.asked) == {0, 1, 2, 3, 4}


def test_bad_samples_become_spares_and_the_rest_stays(make_pool, random_windows, expected, bad_photo_index):
    config = replace(CONFIG, max_bad_share=1.0)
    met: list[tuple[int, int]] = []
    windows = random_windows(24, config)
    pool = make_pool(2, index=bad_photo_index)
    stream = BatchStream(windows, pool, config, on_bad=lambda bad: met.append((bad.draw, bad.sample_id)))
    batches = list(stream)
    rows = [(int(d), int(s)) for batch in batches for d, s in zip(batch.draws, batch.sample_ids, strict=True)]
    planned = [(draw, sample) for draw, sample, _ in expected]
    for (_, sample), (_, wanted) in zip(rows, planned, strict=True):
        assert sample == wanted if wanted not in (3, 5, 7) else sample not in (3, 5, 7)
    reported = [(bad.draw, bad.sample_id) for batch in batches for bad in batch.substituted]
    assert sorted(reported) == sorted(met)
    assert {draw for draw, sample in planned if sample in (3, 5, 7)} == {draw for draw, _ in reported}
    assert all(batch.draws[bad.row] == bad.draw for batch in batches for bad in batch.substituted)
    assert stream.stats()["substituted"] == len(reported)
    substituted_rows = [b.probability[bad.row] for b in batches for bad in b.substituted]
    assert set(substituted_rows) == {0.25}


@pytest.mark.parametrize("size", [1, 4])
def test_substitution_does_not_depend_on_the_number_of_loaders(make_pool, random_windows, bad_photo_index, size):
    config = replace(CONFIG, max_bad_share=1.0, min_request_images=7)
    reference = lines(
        BatchStream(random_windows(24, CONFIG), make_pool(2, index=bad_photo_index), replace(CONFIG, max_bad_share=1.0))
    )
    assert lines(BatchStream(random_windows(24, config), make_pool(size, index=bad_photo_index), config)) == reference


def test_without_a_good_spare_the_row_stays_black_and_is_listed(make_pool, bad_photo_index):
    config = replace(CONFIG, total_steps=1, max_bad_share=1.0)
    (batch,) = BatchStream(FixedWindows(np.arange(24), config), make_pool(1, index=bad_photo_index), config)
    assert [bad.sample_id for bad in batch.substituted] == [3, 5, 7, 3, 5, 7][: len(batch.substituted)]
    assert not batch.images[[bad.row for bad in batch.substituted]].any()


def test_a_burst_of_bad_samples_stops_the_stream_with_a_report(make_pool, random_windows, bad_photo_index):
    config = replace(CONFIG, total_steps=200)
    stream = BatchStream(random_windows(24, config, spare_ids=[3, 5, 7]), make_pool(1, index=bad_photo_index), config)
    with pytest.raises(TooManyBadSamplesError, match=r"bad samples.*photo00"):
        list(stream)


def test_a_stall_is_an_error_that_names_the_loader(make_pool, random_windows):
    config = replace(CONFIG, stall_timeout_s=1.0)
    pool = make_pool(2, hangs_after={"local-0": 0, "local-1": 0})
    with pytest.raises(
        StreamStalled, match=r"no images for 1 s at step 0; waiting for local-0 \(.*\), local-1 \(.*\)\."
    ):
        next(iter(BatchStream(random_windows(24, config), pool, config)))


def test_no_loaders_at_all_is_a_stall_with_its_cause(make_pool, random_windows):
    config = replace(CONFIG, stall_timeout_s=0.5)
    with pytest.raises(StreamStalled, match="no loader is alive"):
        next(iter(BatchStream(random_windows(24, config), make_pool(1, dies_after={"local-0": -1}), config)))


def test_a_window_source_that_does_not_answer_is_a_stall(make_pool):
    freed = threading.Event()

    class Silent:
        def window(self, index: int):
            freed.wait(60)

    config = replace(CONFIG, stall_timeout_s=0.5)
    stream = iter(BatchStream(Silent(), make_pool(1), config))
    with pytest.raises(StreamStalled, match="no window 0 from the selection service"):
        next(stream)
    freed.set()


def test_an_error_of_the_window_source_reaches_the_trainer(make_pool):
    class Broken:
        def window(self, index: int):
            raise RuntimeError("the log is full")

    with pytest.raises(RuntimeError, match="the log is full"):
        next(iter(BatchStream(Broken(), make_pool(1), CONFIG)))


def test_a_window_of_another_size_is_refused(make_pool, random_windows):
    other = replace(CONFIG, global_batch=16)
    with pytest.raises(LoaderError, match="window 0 must carry 256 draws"):
        next(iter(BatchStream(random_windows(24, other), make_pool(1), CONFIG)))


def test_an_error_of_a_loader_reaches_the_trainer(make_pool, random_windows):
    with pytest.raises(ValueError, match="sample ids must be in"):
        next(iter(BatchStream(random_windows(1000, CONFIG), make_pool(1), CONFIG)))


def test_wrong_uses_are_refused(make_pool, random_windows):
    stream = BatchStream(random_windows(24, CONFIG), make_pool(1), CONFIG)
    with pytest.raises(ValueError, match=r"step must be in 0\.\.20"):
        stream.load_state_dict({"step": 21})
    for _ in stream:
        with pytest.raises(ValueError, match="already"):
            next(iter(stream))
        with pytest.raises(ValueError, match="before iterating"):
            stream.load_state_dict({"step": 0})
        break
    with pytest.raises(ValueError, match="at least one LoaderWorker"):
        LocalLoaders([])
    with pytest.raises(ValueError, match="must not be empty"):
        FixedWindows(np.zeros(0, np.int64), CONFIG)


def test_threads_end_with_the_loop(make_pool, random_windows):
    stream = BatchStream(random_windows(24, CONFIG), make_pool(1), CONFIG)
    for _ in stream:
        break
    ends = ("batch-stream", "windows_0")
    wait_for(lambda: not any(thread.name in ends for thread in threading.enumerate()), "the end of its threads")


def test_a_trainer_that_rests_longer_than_the_stall_timeout_is_no_stall(photo_index, make_pool):
    """With windows of one step the stream may not look far ahead, and soon has nothing left to do but wait."""
    config = replace(CONFIG, window_steps=1, total_steps=6, prefetch_steps=4, stall_timeout_s=2.0)
    windows = FixedWindows(np.arange(len(photo_index)), config)
    steps = []
    for batch in BatchStream(windows, make_pool(2), config):
        steps.append(batch.step)
        time.sleep(2.5 if batch.step == 1 else 0.0)
    assert steps == list(range(6))
