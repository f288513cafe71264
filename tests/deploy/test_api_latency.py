"""Control latency: consumed steps are recorded, and no change takes effect later than its bound."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.api.latency import Consumption, LatencyMeter, PendingChange, bound_steps, quantile
from deploy.launch.consumed import RecordedStream
from deploy.runs.config import DataConfig
from loader import BatchStream, LoaderConfig, LoaderWorker, LocalLoaders, StreamConfig, Transform
from loader.batches.windows import FixedWindow, FixedWindows


def test_latency_is_from_the_request_to_the_batch() -> None:
    meter = LatencyMeter()
    for arrived_s, step in ((10.0, 8), (10.5, 12), (11.0, 12)):
        meter.expect(PendingChange(arrived_s=arrived_s, step=step, acknowledged_s=arrived_s, what="x"))
    assert meter.match([(7, 10.2)]) == []
    assert [latency_s for _, latency_s in meter.match([(8, 12.0), (9, 12.5)])] == [2.0]
    assert [latency_s for _, latency_s in meter.match([(13, 15.5)])] == [5.0, 4.5]
    assert meter.summary() == {"count": 3, "p50_s": 4.5, "p99_s": 5.0, "last_s": 4.5}
    meter.expect(PendingChange(arrived_s=20.0, step=16, acknowledged_s=20.0, what="x"))
    meter.forget()
    assert meter.match([(16, 99.0)]) == []
    assert quantile([], 0.5) is None


def test_no_change_lands_later_than_the_bound_says(tmp_path: Path, digits: DataConfig) -> None:
    """A real stream, steps of uneven length, and a control at every moment: the bound is reached, never exceeded."""
    window_steps, total, now = 4, 120, [0.0]
    drawn = [-1]

    class Windows(FixedWindows):
        def window(self, index: int) -> FixedWindow:
            drawn[0] = max(drawn[0], index)
            return super().window(index)

    config = StreamConfig(  # requests of a step: a group of several is planned, and its windows drawn, later
        seed=0,
        global_batch=8,
        total_steps=total,
        window_steps=window_steps,
        min_request_images=8,
        transform=Transform(size=16),
    )
    path, asked = tmp_path / "consumed.jsonl", []
    with closing(LocalLoaders([LoaderWorker(digits.index, LoaderConfig())])) as loaders:
        stream = BatchStream(Windows(np.arange(64), config), loaders, config)
        for batch in RecordedStream(stream, path, window_steps=window_steps, clock=lambda: now[0]):
            for _ in range(4):  # a request comes at any moment of a step; the last of a window takes longest
                now[0] += 5.0 if batch.step % window_steps == window_steps - 1 else 0.01
                time.sleep(0.002)
                asked.append((now[0], (drawn[0] + 1) * window_steps))
    consumption = Consumption(path)
    consumption.follow()
    taken = [lands - (consumption.step_at(time_s) or 0) for time_s, lands in asked if lands < total]
    assert max(taken) == bound_steps(window_steps) == 2 * window_steps + 1
    assert bound_steps(window_steps, ranks=8) == 2 * window_steps + 2, "another rank may be at the next step"


class Steps:
    """A stream of bare steps."""

    def __iter__(self) -> Iterator[Any]:
        yield from (type("Batch", (), {"step": step}) for step in range(10_000))


def test_what_is_consumed_is_noted_in_a_file_that_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.launch.consumed.FILE_BYTES", 64 * 1024)
    path, now = tmp_path / "consumed.jsonl", [1.0]
    noted, seen = RecordedStream(Steps(), path, window_steps=2, clock=lambda: now[0]), []  # type: ignore[arg-type]
    consumption = Consumption(path)
    for batch in noted:
        now[0] += 0.01
        if batch.step % 100 == 0:
            seen += consumption.follow()
    seen += consumption.follow()
    assert path.stat().st_size < 70_000
    steps = np.array([step for step, _ in seen])
    assert np.array_equal(steps[steps % 2 == 0], np.arange(0, 10_000, 2)), "no window is missed, none is told twice"
    assert [consumption.step_at(at) for at in (91.005, 91.015, 1000.0)] == [9000, 9001, 9999]
    assert consumption.step_at(0.5) is None
    assert consumption.progress() == (9999, pytest.approx(0.01, rel=0.01))
