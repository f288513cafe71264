"""A run that pauses does nothing else: the same losses, no step during the pause, its time in no figure."""

import threading
import time

import pytest
from trainer_fakes import FakeStream, tiny_run

from tests.runs import losses
from trainer import RunHooks, read_metrics, train
from trainer.record.metrics import Meter

PAUSE_S = 0.6


def test_a_run_rests_before_the_next_step_and_loses_nothing(tmp_path):
    config = tiny_run(log_every=1)
    train(config, FakeStream(config), run_dir=tmp_path / "whole")
    stream, asked = FakeStream(config), threading.Event()
    seen = []

    def pause():
        if stream.next_step == 3 and not seen:
            asked.set()
            threading.Timer(PAUSE_S, asked.clear).start()
        if asked.is_set():
            seen.append(stream.next_step)
        return asked.is_set()

    train(config, stream, run_dir=tmp_path / "paused", hooks=RunHooks(should_pause=pause))
    assert losses(tmp_path / "paused") == losses(tmp_path / "whole")
    assert set(seen) == {3}
    lines = read_metrics(tmp_path / "paused" / "metrics.jsonl")
    begin, end = (line for line in lines if "paused" in line)
    assert (begin["step"], begin["paused"], end["step"], end["paused"]) == (3, True, 3, False)
    assert end["time"] - begin["time"] > 0.9 * PAUSE_S
    before, after = (line for line in lines if line["step"] in (3, 4) and "loss" in line)
    paused_s, counted_s = end["time"] - begin["time"], config.global_batch / after["images_per_s"]
    assert counted_s == pytest.approx(after["time"] - before["time"] - paused_s, abs=0.5 * PAUSE_S)


def test_a_paused_run_can_be_stopped(tmp_path):
    config = tiny_run()
    stream = FakeStream(config)
    started = time.monotonic()
    result = train(
        config,
        stream,
        run_dir=tmp_path,
        hooks=RunHooks(
            should_pause=lambda: stream.next_step == 2, should_stop=lambda: time.monotonic() > started + PAUSE_S
        ),
    )
    assert (result.reason, result.step) == ("stopped", 2)
    train(config, FakeStream(config), run_dir=tmp_path)
    train(config, FakeStream(config), run_dir=tmp_path / "whole")
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_meter_leaves_out_the_time_of_a_pause():
    now = iter([0.0, 10.0, 10.0])
    meter = Meter(clock=lambda: next(now))
    meter.add(100, 1.0)
    meter.skip(8.0)
    assert meter.read() == {"images_per_s": pytest.approx(50.0), "data_wait": pytest.approx(0.5)}
