"""Loaders that die, hang or crawl under Ray, at every point of a request: the run sees the same values, and soon."""

# Ray reads its authentication settings when it is imported, so every import of it follows the fixture that sets them.

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from loader import BatchStream, LoaderConfig, LoaderWorker, ShardIndex
from tests.faults.consuming import CONFIG, consume, in_process, local_loaders, windows
from tests.faults.failpoints import FIRED, VARIABLE, runtime_env
from tests.local_ray import local_ray
from tests.runs import wait_for

LONG, VERY_LONG = replace(CONFIG, total_steps=240), replace(CONFIG, total_steps=4800)
STEP_S = 0.05
"""A trainer that computes for so long a step; what it holds in advance is gone in a second."""


@pytest.fixture(scope="module")
def expected(index: ShardIndex) -> dict[int, str]:
    """Digest by number of steps."""
    return {config.total_steps: in_process(index, config).digest for config in (CONFIG, LONG)}


@contextmanager
def ray_fleet(index: ShardIndex, size: int, failpoint: str = "") -> Iterator[object]:
    """A fleet on a Ray of its own."""
    from loader.fleet.actors import start_fleet

    with pytest.MonkeyPatch.context() as patch:
        if failpoint:
            patch.setenv(VARIABLE, failpoint)
        with (
            local_ray(runtime_env=runtime_env()),
            closing(start_fleet(index.path, LoaderConfig(), size=size, num_cpus=0)) as fleet,
        ):
            yield fleet


def consumed(index: ShardIndex, fleet, on_step=lambda step: None, config=CONFIG, step_s=0.0):
    from loader.actors import RayLoaders

    stream = BatchStream(windows(len(index), config), RayLoaders(fleet), config)
    return consume(stream, on_step, step_s=step_s), stream.stats()


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.parametrize(
    ("failpoint", "goal_s"),
    [
        ("loader.request=kill@4", 3.0),
        ("loader.decoded=kill@4", 3.0),
        ("loader.reply=kill@4", 3.0),
        ("loader.decoded=segfault@4", 8.0),
        ("loader.decoded=hang:30@4", 8.0),
    ],
)
def test_a_loader_that_dies_or_hangs_in_a_request_changes_nothing(  # noqa: PLR0917 - fixtures
    failpoint, goal_s, index, expected, tmp_path, note, monkeypatch
):
    fired = tmp_path / "fired"
    monkeypatch.setenv(FIRED, str(fired))
    with ray_fleet(index, 3, failpoint) as fleet:
        seen, stats = consumed(index, fleet, step_s=STEP_S)
        assert fired.read_text().split() == [failpoint.partition("=")[0]], "the fault fired, once"
        waited = seen.longest_wait(fired.stat().st_mtime - time.time() + time.monotonic())
        assert seen.digest == expected[CONFIG.total_steps]
        assert stats["rerouted"] + stats["hedged"] >= 1
        assert waited < goal_s
        note(f"loader: {failpoint}", recovery_s=[waited], goal=f"{goal_s:g} s")


@pytest.mark.faults
@pytest.mark.ray
def test_twenty_sigkills_of_loaders_change_nothing(index, note):
    times: list[float] = []
    expected = in_process(index, VERY_LONG).digest
    with ray_fleet(index, 3) as fleet:

        def kill_one(step: int) -> None:
            if step % 12 == 6 and len(times) < 20:
                ready = [one for one in fleet.status()["loaders"] if one["state"] == "ready"]
                if len(ready) >= 2:  # a loader's death is the fault, not that of all: those take seconds to start
                    os.kill(ready[step // 12 % len(ready)]["pid"], signal.SIGKILL)
                    times.append(time.monotonic())

        seen, stats = consumed(index, fleet, kill_one, VERY_LONG, STEP_S)
    recovery = [seen.longest_wait(moment, after) for moment, after in zip(times, [*times[1:], math.inf], strict=True)]
    assert seen.digest == expected
    assert len(times) == 20
    assert stats["rerouted"] >= 1
    assert np.quantile(recovery, 0.95) < 3.0
    note("loader SIGKILL", recovery_s=recovery, goal="3 s p95")


@pytest.mark.faults
@pytest.mark.ray
def test_a_loader_that_is_frozen_is_hedged_and_replaced(index, expected, note):
    frozen: list[tuple[int, float]] = []
    with ray_fleet(index, 3) as fleet:

        def freeze(step: int) -> None:
            if step == 20:
                pid = fleet.status()["loaders"][0]["pid"]
                os.kill(pid, signal.SIGSTOP)
                frozen.append((pid, time.monotonic()))

        try:
            seen, stats = consumed(index, fleet, freeze, LONG, STEP_S)
            wait_for(lambda: any(event.kind == "loader_lost" for event in fleet.events()), "its replacement")
        finally:
            os.kill(frozen[0][0], signal.SIGCONT)
    waited = seen.longest_wait(frozen[0][1])
    assert seen.digest == expected[LONG.total_steps]
    assert stats["hedged"] >= 1
    assert waited < 8.0
    note("loader frozen (SIGSTOP)", recovery_s=[waited], goal="8 s")


class SlowLoader(LoaderWorker):
    """Takes its time for every image: what it does by processor is nothing beside it."""

    seconds = 0.002

    def load(self, spec, *, out=None):
        time.sleep(self.seconds * len(spec))
        return super().load(spec, out=out)


def straggling(index: ShardIndex, slower: float) -> tuple[float, str, dict[str, float | int]]:
    """Images a second with four loaders, of which one is slower than the others."""
    config = replace(CONFIG, total_steps=120, request_deadline_s=0.3)
    made = iter(range(4))

    def make(index: str, settings: LoaderConfig) -> LoaderWorker:
        worker = SlowLoader(index, settings)
        worker.seconds = SlowLoader.seconds * (slower if next(made) == 0 else 1.0)
        return worker

    with local_loaders(str(index.path), 4, make) as pool:
        stream = BatchStream(windows(len(index), config), pool, config)
        started = time.monotonic()
        seen = consume(stream)
        return config.total_steps * config.global_batch / (time.monotonic() - started), seen.digest, stream.stats()


@pytest.mark.faults
def test_a_straggler_does_not_hold_up_the_others(index, note):
    alike, digest, _ = straggling(index, 1.0)
    rate, same, stats = straggling(index, 10.0)
    assert same == digest
    assert stats["hedged"] >= 1
    share = rate / (0.75 * alike)
    note("straggler 10x slower", goal="80 % of the others", seen=f"{share:.0%} of the others' rate")
    assert share > 0.8


@pytest.mark.faults
def test_without_hedging_a_straggler_holds_up_everybody(index, monkeypatch):
    alike, _, _ = straggling(index, 1.0)
    monkeypatch.setattr("loader.batches.assembly.Assembler._hedge", lambda self: None)
    monkeypatch.setattr("loader.batches.assembly.Assembler._suspects", lambda self: set())
    rate, _, stats = straggling(index, 10.0)
    assert stats["hedged"] == 0
    assert rate / (0.75 * alike) < 0.8


def test_without_rerouting_a_lost_loader_ends_the_run(index, monkeypatch):
    class Lossy(LoaderWorker):
        calls = 0

        def load(self, spec, *, out=None):
            from loader import LoaderLost

            type(self).calls += 1
            if type(self).calls == 3:
                raise LoaderLost("killed")
            return super().load(spec, out=out)

    def run() -> int:
        Lossy.calls = 0
        return len(in_process(index, replace(CONFIG, stall_timeout_s=2.0), count=2, make=Lossy).lines)

    assert run() == CONFIG.total_steps
    monkeypatch.setattr("loader.batches.assembly.Assembler._reroute", lambda self, request, error: None)
    with pytest.raises(Exception, match="no images for 2 s"):
        run()


def test_late_and_repeated_replies_are_ignored(index, expected):
    class Late(LoaderWorker):
        def load(self, spec, *, out=None):
            time.sleep(0.3 if int(spec.draws[0]) % 3 == 0 else 0.0)
            return super().load(spec, out=out)

    config = replace(CONFIG, request_deadline_s=0.005)
    with local_loaders(str(index.path), 3, Late) as pool:
        stream = BatchStream(windows(len(index), config), pool, config)
        assert consume(stream).digest == expected[CONFIG.total_steps]
    assert stream.stats()["hedged"] >= 1, "some requests were answered twice"
