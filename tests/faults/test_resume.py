"""A run that dies at any step, or at any durable operation, and is continued, sees and learns what it would have."""

from __future__ import annotations

import multiprocessing
import signal

import pytest

from deploy.runs.config import DataConfig, RunConfig
from deploy.runs.rundir import RunDir
from tests.faults.failpoints import PLACES, failpoints
from tests.faults.small_run import STEPS, Crash, crash_at, drive, in_a_process, judged, small
from tests.integration.checker import Verdict
from tests.runs import losses

OPERATIONS = tuple(place for place in PLACES if not place.startswith("loader"))
COUNTING = ",".join(f"{place}=sleep@1000000" for place in OPERATIONS)


@pytest.fixture(scope="module")
def config(digits: DataConfig) -> RunConfig:
    return small(digits)


Whole = tuple[Verdict, list[tuple[int, float]], dict[str, int]]


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The uninterrupted run, and how often it passed each durable operation."""
    run = RunDir(tmp_path_factory.mktemp("whole") / "run")
    failpoints.set(COUNTING)
    try:
        drive(config, run)
        passed = failpoints.passed()
    finally:
        failpoints.set("")
    verdict = judged(run)
    assert (verdict.breaches, verdict.steps) == ({}, STEPS)
    return verdict, losses(run), passed


def assert_same_as_whole(run: RunDir, whole: Whole) -> None:
    verdict, expected, _ = whole
    found = judged(run)
    assert found.breaches == {}
    assert (found.steps, found.draws, found.digest) == (verdict.steps, verdict.draws, verdict.digest)
    assert losses(run) == expected  # bit for bit: JSON keeps every digit of a float


@pytest.mark.parametrize(("step", "loaders"), [(1, 1), (18, 4), (49, 2)])
def test_a_crash_at_a_step_and_a_resume_change_nothing(step, loaders, config, whole, tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(Crash):
        drive(config, run, loaders=loaders, on_step=crash_at(step))
    assert [number for number, _ in losses(run)] == list(range(1, step + 1))
    drive(config, run, loaders=loaders)
    assert_same_as_whole(run, whole)


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.ForkServerContext:
    """Forks processes that have imported everything and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.small_run"])
    return context


def killed(server, config: RunConfig, run: RunDir, *, loaders: int = 1, step: int = 0, failpoint: str = "") -> None:
    process = server.Process(target=in_a_process, args=(config, str(run.path), loaders, step, failpoint))
    process.start()
    process.join(400)
    assert process.exitcode == -signal.SIGKILL, "the fault fired"


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loaders", [1, 2, 4])
def test_sigkill_at_every_step_and_a_resume_change_nothing(loaders, server, config, whole, tmp_path):
    for step in range(1, STEPS):
        run = RunDir(tmp_path / f"{step}")
        killed(server, config, run, loaders=loaders, step=step)
        drive(config, run, loaders={1: 2, 2: 4, 4: 1}[loaders])
        assert_same_as_whole(run, whole)


@pytest.mark.parametrize("place", OPERATIONS)
def test_sigkill_at_each_durable_operation_changes_nothing(place, server, config, whole, tmp_path):
    passages = whole[2][place]
    assert passages > 0
    run = RunDir(tmp_path / "run")
    killed(server, config, run, failpoint=f"{place}=kill@{max(1, passages // 2)}")
    drive(config, run)
    assert_same_as_whole(run, whole)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", OPERATIONS)
def test_sigkill_at_every_durable_operation_changes_nothing(place, server, config, whole, tmp_path):
    for passage in range(1, whole[2][place] + 1):
        run = RunDir(tmp_path / f"{passage}")
        killed(server, config, run, loaders=passage % 3 + 1, failpoint=f"{place}=kill@{passage}")
        drive(config, run, loaders=passage % 2 + 1)
        assert_same_as_whole(run, whole)


def test_a_torn_snapshot_changes_nothing(server, config, whole, tmp_path):
    run = RunDir(tmp_path / "run")
    killed(server, config, run, failpoint="snapshot.write=partial@3")
    drive(config, run)
    assert_same_as_whole(run, whole)


def test_without_the_cursor_a_resume_is_not_the_same_run(config, whole, tmp_path, monkeypatch):
    run = RunDir(tmp_path / "run")
    with pytest.raises(Crash):
        drive(config, run, on_step=crash_at(18))
    monkeypatch.setattr("loader.stream.BatchStream.load_state_dict", lambda self, state: None)
    with pytest.raises(ValueError, match="must be for the next step"):
        drive(config, run)
    monkeypatch.setattr("trainer.loop._check_batch", lambda batch, state: None)
    drive(config, run)
    assert judged(run).digest != whole[0].digest
    assert losses(run) != whole[1]
