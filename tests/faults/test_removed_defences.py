"""Each defence taken away in turn: what a row of the fault table asserts must then fail, or the row proves nothing.

Defences that are next to their rows (storage, bytes, scores, hedging, the cursor) are taken away there.
"""

# Ray reads its authentication settings when it is imported, so every import of it follows the fixture that sets them.

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.runs.rundir import RunDir
from loader import BatchStream, LoaderConfig, ShardIndex, StreamStalled
from scoring import RunLog, Selection, SelectionUnavailable
from scoring.log.snapshots import CHECKSUM, PREFIX
from tests.faults.chaotic_stream import lost_calls
from tests.faults.consuming import CONFIG as STREAM
from tests.faults.consuming import consume, windows
from tests.faults.failpoints import failpoints
from tests.faults.small_run import STEPS, drive, judged, small
from tests.local_ray import local_ray
from tests.runs import losses, wait_for
from tests.scoring.configs import changed, selection_config
from trainer.errors import CheckpointError

N = 200
DISTANCE = np.random.default_rng(0).random(N).astype(np.float32)
CONFIG = selection_config(seed=3, global_batch=8, window_steps=4, num_samples=N, start=0.3)


# -- configuration ----------------------------------------------------------------------------------------------------


def not_finite() -> Selection:
    return Selection(np.full(N, np.nan, np.float32), CONFIG)


def too_large() -> Selection:
    return Selection(DISTANCE, changed(CONFIG, start=0.9))


def empty() -> Selection:
    return Selection(np.zeros(0, np.float32), replace(CONFIG, num_samples=0))


def of_other_data() -> Selection:
    return Selection(DISTANCE, replace(CONFIG, num_samples=N + 1))


UNCHECKED = {
    f"scoring.{module}.checked_distance": np.asarray for module in ("selection", "temperature", "table.samples")
}


def told(make: Callable[[], Selection]) -> str:
    """What the person is told who makes it; empty when it can be made."""
    try:
        make()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("make", "message", "defences"),
    [
        (not_finite, "finite", UNCHECKED),
        (empty, "at least one", UNCHECKED),
        (of_other_data, "one value for each", {"scoring.config.SelectionConfig.size_of": lambda self, d: len(d)}),
        (
            too_large,
            "distinct samples",
            {
                "scoring.config.checked_effective_size": float,
                "scoring.schedules.checked_effective_size": float,
                "scoring.temperature.checked_effective_size": float,
                "scoring.control_state.checked_effective_size": float,
            },
        ),
    ],
    ids=["not finite", "empty", "of other data", "too large"],
)
def test_without_its_check_a_wrong_configuration_is_not_told(make, message, defences, monkeypatch):
    assert message in told(make)
    for where, mutant in defences.items():
        monkeypatch.setattr(where, mutant)
    assert message not in told(make), "whatever comes now is no word for a person"


# -- notices and disks ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deaf():
    """Nobody hears SIGTERM."""
    yield threading.Event()


def steady(config, folder, heard):
    """What a forked process does: train until it is told to stop, or is ended."""
    if not heard:
        from trainer import loop

        loop._sigterm_flag = deaf
    drive(config, RunDir(Path(folder)), on_step=lambda step, metrics: time.sleep(0.05))


@pytest.mark.faults
@pytest.mark.parametrize("heard", [True, False])
def test_without_hearing_the_notice_a_run_ends_without_its_checkpoint(heard, digits, tmp_path):
    run = RunDir(tmp_path / "run")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.small_run"])
    process = context.Process(target=steady, args=(small(digits, "train.checkpoint_every=0"), str(run.path), heard))
    process.start()
    wait_for(lambda: len(losses(run)) >= 3 or not process.is_alive(), "three steps")
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    kept = list(run.checkpoints.glob("step-*"))
    assert (process.exitcode, bool(kept)) == ((0, True) if heard else (-signal.SIGTERM, False))


def full_disk_at_a_checkpoint(config, run: RunDir) -> None:
    failpoints.set("checkpoint.state=enospc@3")
    try:
        drive(config, run)
    finally:
        failpoints.set("")


def test_a_full_disk_at_a_checkpoint_stops_the_run_and_costs_no_older_one(digits, tmp_path, note):
    config, run = small(digits), RunDir(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"must fit on the disk.*No space left.*Free space and resume"):
        full_disk_at_a_checkpoint(config, run)
    assert [path.name for path in sorted(run.checkpoints.glob("step-*"))] == ["step-00000004", "step-00000008"]
    drive(config, run)
    verdict = judged(run)
    assert (verdict.breaches, verdict.steps) == ({}, STEPS)
    note("disk: enospc at a checkpoint", seen="typed error, older checkpoints whole, resumed")


def test_without_a_word_from_the_writer_a_full_disk_at_a_checkpoint_goes_unseen(digits, tmp_path, monkeypatch):
    def silent(self):
        with contextlib.suppress(Exception):
            return self._pending.result() if self._pending else None

    monkeypatch.setattr("trainer.record.checkpoint.Checkpoints.wait", silent)
    run = RunDir(tmp_path / "run")
    full_disk_at_a_checkpoint(small(digits), run)
    assert losses(run)[-1][0] == STEPS, "trained on as if the checkpoint were there"


def flipped(path: Path) -> None:
    """Flip a bit of the newest snapshot's first column, how often each sample was drawn; its header stays as it is."""
    newest = max(path.parent.glob("run.sqlite.snapshot-*"))
    data = bytearray(newest.read_bytes())
    data[PREFIX.size + PREFIX.unpack_from(data)[2] + CHECKSUM.size] ^= 1
    newest.write_bytes(data)


def unchecked(file, described):
    array = np.empty(described.shape, described.dtype)
    file.readinto(array.reshape(-1).view(np.uint8).data)
    return array


def test_without_its_checksum_a_flipped_snapshot_is_believed(tmp_path, monkeypatch, note):
    path, config = tmp_path / "run.sqlite", replace(CONFIG, snapshot_windows=2)
    with contextlib.closing(Selection(DISTANCE, config, runlog=RunLog(path))) as service:
        for index in range(5):
            service.window(index)
            values = np.random.default_rng(index).random(N)
            service.report_scores(np.arange(N), values, kind="loss", step=index, producer="a", sequence=index)
        expected = service.times_drawn(), service.scores("loss")
    flipped(path)

    def recovered() -> tuple[np.ndarray, np.ndarray]:
        with contextlib.closing(Selection(DISTANCE, config, runlog=RunLog(path))) as again:
            return again.times_drawn(), again.scores("loss")

    for found, known in zip(recovered(), expected, strict=True):
        np.testing.assert_array_equal(found, known)
    note("snapshot flipped", seen="passed over; the one before it and the log give the same state")
    monkeypatch.setattr("scoring.log.snapshots._read", unchecked)
    assert not all(np.array_equal(found, known) for found, known in zip(recovered(), expected, strict=True))


# -- Ray --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ray():
    with local_ray() as ray:
        yield ray


def kill_the_selection(runlog: Path, name: str) -> str:
    """Kill the service between two windows; the digest of the second."""
    from scoring.actors import start_selection

    client = start_selection(changed(CONFIG, policy="uniform_replacement"), runlog=runlog, name=name)
    client.timeout_s = 8.0
    try:
        client.window(0)
        os.kill(client.state()["pid"], signal.SIGKILL)
        return client.window(1).digest
    finally:
        client.stop()


@pytest.mark.faults
@pytest.mark.ray
def test_without_restarts_or_retries_a_killed_selection_ends_the_run(ray, tmp_path, monkeypatch):
    alone = Selection(None, changed(CONFIG, policy="uniform_replacement"))
    alone.window(0)
    assert kill_the_selection(tmp_path / "whole" / "run.sqlite", "whole") == alone.window(1).digest
    with monkeypatch.context() as patch:
        original = ray.actor.ActorClass.options
        patch.setattr(
            "ray.actor.ActorClass.options", lambda self, **named: original(self, **{**named, "max_restarts": 0})
        )
        with pytest.raises(SelectionUnavailable, match="must answer within"):
            kill_the_selection(tmp_path / "restarts" / "run.sqlite", "restarts")
    monkeypatch.setattr("scoring.actors.RETRY_PAUSE_S", 1e9)
    with pytest.raises(SelectionUnavailable, match="must answer within"):
        kill_the_selection(tmp_path / "retries" / "run.sqlite", "retries")


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.parametrize("kept_alive", [True, False])
def test_without_a_fleet_that_replaces_them_lost_loaders_end_the_run(kept_alive, ray, digits):
    from loader.actors import RayLoaders
    from loader.fleet.actors import start_fleet

    index = ShardIndex.load(digits.index)
    config = replace(STREAM, total_steps=120, stall_timeout_s=60.0 if kept_alive else 10.0)
    fleet = start_fleet(digits.index, LoaderConfig(), size=2, num_cpus=0)
    loaders = [one["pid"] for one in fleet.status()["loaders"]]
    supervisor = ray.get(fleet.actor.__ray_call__.remote(lambda self: os.getpid()))

    def kill(step: int) -> None:
        if step == 10:
            if not kept_alive:
                os.kill(supervisor, signal.SIGSTOP)
            for pid in loaders:
                os.kill(pid, signal.SIGKILL)

    stream = BatchStream(windows(len(index), config), RayLoaders(fleet), config)
    outcome = contextlib.nullcontext() if kept_alive else pytest.raises(StreamStalled, match="no images for")
    try:
        with outcome:
            assert len(consume(stream, kill, step_s=0.02).lines) == config.total_steps
    finally:
        os.kill(supervisor, signal.SIGCONT)
        fleet.close()


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.parametrize("defence", ["loader", "selection"])
def test_without_asking_again_a_network_that_fails_ends_the_run(defence, digits, tmp_path):
    from tests.faults.test_ray_faults import CHAOS, PATIENCE_S

    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.chaotic_stream", digits.index, str(tmp_path / "run.sqlite"), defence],
        env=os.environ | {"RAY_testing_rpc_failure": json.dumps(CHAOS)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        _, told = process.communicate(timeout=PATIENCE_S)
    assert lost_calls(process.pid) > 0, "the fault fired"
    assert process.returncode != 0
    assert {"loader": "StreamStalled", "selection": "SelectionUnavailable"}[defence] in told
