"""What only a whole Ray can suffer: a network that fails, a head that is lost, a service killed at its disk."""

# Ray reads its authentication settings when it is imported, so every import of it follows the fixture that sets them.

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.launch.cluster import HEAD_PATIENCE, HEAD_PATIENCE_S
from deploy.runs.config import DataConfig, RunConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir
from scoring import RunLog
from tests.faults.chaotic_stream import lost_calls
from tests.faults.failpoints import FIRED, VARIABLE, environment, runtime_env
from tests.faults.small_run import SETTINGS
from tests.integration.checker import check, read_evidence
from tests.local_ray import local_ray
from tests.runs import wait_for
from tests.scoring.configs import selection_config
from tests.soak.processes import Processes
from tests.soak.verdict import reference_decoder

PATIENCE_S = 300.0
MOST_RESUMES = 12
ON_RAY = (*SETTINGS, "fleet.loaders=2", "train.total_steps=120")
CHAOS = {
    name: {"num_failures": -1, "req_failure_prob": 5, "resp_failure_prob": 5, "in_flight_failure_prob": 5}
    for name in (
        "CoreWorkerService.grpc_client.PushTask",
        "CoreWorkerService.grpc_client.GetObjectStatus",
        "NodeManagerService.grpc_client.RequestWorkerLease",
        "ActorInfoGcsService.grpc_client.GetActorInfo",
    )
}

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(900)]


def started(words: list[object], processes: Processes, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A command of ours in a process of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", *map(str, words)],
            env=processes.environment | environment,
            stdout=output,
            stderr=output,
        )


def train_words(run: RunDir, digits: DataConfig) -> list[object]:
    data = ["--index", digits.index, "--prototypes", digits.prototypes]
    return ["train", "debug", *data, "--out", run.path, "--set", *ON_RAY]


def judged(run: RunDir, digits: DataConfig):
    config: RunConfig = override(debug(digits), ON_RAY)
    return check(read_evidence(run.path), reference=reference_decoder(config), most_pixels=128)


def steps_of(run: RunDir) -> int:
    return sum(len(path.read_text().splitlines()) for path in (run.path / "oracle").glob("*.jsonl"))


def wait_for_steps(run: RunDir, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
    wait_for(lambda: steps_of(run) >= count, f"step {count}", process, log=log)


def test_a_network_that_fails_one_call_in_seven_changes_nothing(digits, tmp_path, note):
    """Loaders, fleet and selection; Ray Train's own calls are left alone."""
    environment = os.environ | {"RAY_testing_rpc_failure": json.dumps(CHAOS)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.chaotic_stream", digits.index, str(tmp_path / "run.sqlite")],
        env=environment, check=False, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["lost"] > 0, "the fault fired"
    assert answer["under_ray"] == answer["in_process"]
    seen = f"{answer['steps']} steps in {time.monotonic() - began:.0f} s, {answer['lost']} calls lost, "
    seen += f"{answer['rerouted']} requests asked again"
    note("Ray RPC chaos (15 % of 4 kinds of call)", seen=seen)


@contextmanager
def headless(run: RunDir, digits: DataConfig, log: Path, **environment: str) -> Iterator[tuple[Any, float]]:
    """A run whose head was killed at its twentieth step, and when that was; nothing of it is left behind."""
    processes = Processes()
    process = started([*train_words(run, digits), "train.total_steps=100000"], processes, log, **environment)
    try:
        wait_for_steps(run, 20, process, log)
        (head,) = [pid for pid in processes.alive() if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(head, signal.SIGKILL)
        yield process, time.monotonic()
    finally:
        for pid in processes.alive():
            os.kill(pid, signal.SIGKILL)
        process.wait()


def test_a_lost_head_is_a_clear_error_and_a_resume_goes_on(digits, tmp_path, note):
    run, log = RunDir(tmp_path / "run"), tmp_path / "log"
    with headless(run, digits, log) as (process, lost):
        assert process.wait(PATIENCE_S) != 0
        ended = time.monotonic() - lost
    words = " ".join(log.read_text().split())
    assert "Ray's head at 127.0.0.1:" in words
    assert "`tempera resume" in words, "the words name the remedy"
    before, processes = steps_of(run), Processes()
    again = started(["resume", run.path], processes, log)
    try:
        wait_for_steps(run, before + 10, again, log)
        recovered = time.monotonic() - lost
        run.stop_request.touch()
        assert again.wait(PATIENCE_S) == 0, log.read_text()[-2000:]
    finally:
        again.kill()
    assert judged(run, digits).breaches == {}
    note("head lost (GCS SIGKILL)", recovery_s=[recovered], goal="120 s", seen=f"error after {ended:.0f} s, resumed")


def test_without_a_limit_on_the_wait_for_it_a_lost_head_ends_nothing(digits, tmp_path):
    """The run hangs on, and nobody can tell it from one that trains."""
    run, log = RunDir(tmp_path / "run"), tmp_path / "log"
    with (
        headless(run, digits, log, **{HEAD_PATIENCE: "100000"}) as (process, _),
        pytest.raises(subprocess.TimeoutExpired),
    ):
        process.wait(4 * HEAD_PATIENCE_S)


@pytest.mark.timeout(3600)
def test_a_network_that_fails_one_call_in_thirty_changes_nothing_of_a_whole_run(digits, tmp_path, note):
    """Ray Train's calls, too. Its group starts again by itself; when its controller gives up, a person resumes."""
    run, log, processes = RunDir(tmp_path / "run"), tmp_path / "log", Processes()
    chaos = {name: dict.fromkeys(rates, 1) | {"num_failures": -1} for name, rates in CHAOS.items()}
    began, words, lost, resumed = time.monotonic(), [*train_words(run, digits), "trainers.max_failures=1000"], 0, -1
    status = -1
    while status and resumed < MOST_RESUMES:
        process = started(words, processes, log, RAY_testing_rpc_failure=json.dumps(chaos))
        try:
            status = process.wait(2 * PATIENCE_S)
        finally:
            process.kill()
        lost, resumed, words = lost + lost_calls(process.pid), resumed + 1, ["resume", run.path]
    assert status == 0, log.read_text()[-2000:]
    assert lost > 0, "the fault fired"
    verdict = judged(run, digits)
    assert (verdict.breaches, verdict.steps) == ({}, 120)
    seen = f"{lost} calls lost, {verdict.steps} steps in {time.monotonic() - began:.0f} s, resumed {resumed} times"
    note("Ray RPC chaos of a whole run (3 % of 4 kinds of call)", seen=seen)


@pytest.mark.parametrize("restarts", [3, 0])
def test_a_rank_that_is_killed_is_started_again_from_its_checkpoint(restarts, digits, tmp_path, note):
    """Without a restart, which is the defence, the run ends with an error, and a person resumes."""
    run, log, processes = RunDir(tmp_path / "run"), tmp_path / "log", Processes()
    process = started([*train_words(run, digits), f"trainers.max_failures={restarts}"], processes, log)
    try:
        wait_for_steps(run, 20, process, log)
        (rank,) = processes.of("trainer")
        killed = time.time()
        os.kill(rank, signal.SIGKILL)
        status = process.wait(PATIENCE_S)
    finally:
        process.kill()
    if restarts:
        assert status == 0, log.read_text()[-2000:]
    else:
        assert status != 0
        assert steps_of(run) < 120
        again = started(["resume", run.path], processes, log)
        assert again.wait(PATIENCE_S) == 0, log.read_text()[-2000:]
    verdict = judged(run, digits)
    assert (verdict.breaches, verdict.steps) == ({}, 120)
    first, second = read_evidence(run.path).incarnations
    assert first[-1]["step"] < 119, "the fault fired"
    recovered = second[0]["time"] - killed
    note("trainer rank SIGKILL", recovery_s=[recovered], seen=f"{'by itself' if restarts else 'resumed by a person'}")


@pytest.mark.parametrize("restarts", [0, 3])
def test_a_full_disk_at_a_checkpoint_of_a_live_run_names_its_cause_and_costs_no_step(restarts, digits, tmp_path, note):
    run, log, processes, fired = RunDir(tmp_path / "run"), tmp_path / "log", Processes(), tmp_path / "fired"
    failing = environment("checkpoint.write=enospc@3", fired)
    process = started([*train_words(run, digits), f"trainers.max_failures={restarts}"], processes, log, **failing)
    try:
        status = process.wait(PATIENCE_S)
    finally:
        process.kill()
    assert fired.read_text().split() == ["checkpoint.write"], "the fault fired, once"
    assert (status == 0) == (restarts > 0), log.read_text()[-2000:]
    if not restarts:
        assert "a checkpoint must fit on the disk" in log.read_text()
        again = started(["resume", run.path], processes, log)
        assert again.wait(PATIENCE_S) == 0, log.read_text()[-2000:]
    verdict = judged(run, digits)
    assert (verdict.breaches, verdict.steps) == ({}, 120)
    moments = sorted(line["time"] for lines in read_evidence(run.path).incarnations for line in lines)
    after = [moment for moment in moments if moment > fired.stat().st_mtime]
    recovered = max(later - before for before, later in itertools.pairwise(after))
    how = f"the group restarted {restarts} times at most" if restarts else "error naming the disk, resumed by a person"
    note("disk: enospc at a checkpoint of a live run", recovery_s=[recovered], seen=how)


LARGE = selection_config(
    seed=2, global_batch=4096, window_steps=16, num_samples=1_281_167, policy="uniform_replacement", snapshot_windows=2
)


@contextmanager
def service(path: Path, failpoint: str, fired: Path) -> Iterator[object]:
    """A selection of ImageNet's size as an actor, with a failpoint in its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, failpoint)
        patch.setenv(FIRED, str(fired))
        with local_ray(runtime_env=runtime_env()):
            from scoring.actors import start_selection

            client = start_selection(LARGE, runlog=path, name=f"selection-{path.parent.name}")
            yield client
            client.stop()


@pytest.mark.parametrize(
    "failpoint",
    [
        "selection.append=kill@4",
        "selection.appended=kill@4",
        "snapshot.write=partial@3",
        "snapshot.rename=kill",
        "snapshot.renamed=kill",
    ],
)
def test_a_service_killed_at_its_disk_is_back_in_seconds_with_all_it_acknowledged(failpoint, tmp_path, note):
    path, fired = tmp_path / "run.sqlite", tmp_path / "fired"
    rng, acknowledged, digests, waits = np.random.default_rng(0), [], [], []
    with service(path, failpoint, fired) as client:
        for index in range(5):
            began = time.monotonic()
            digests.append(client.window(index).digest)
            ids = rng.permutation(LARGE.num_samples)[:200_000]
            report = {"kind": "loss", "step": index, "producer": "rank-0", "sequence": index}
            assert client.report_scores(ids, rng.random(len(ids)), **report).accepted == len(ids)
            acknowledged.append(("rank-0", index))
            waits.append(time.monotonic() - began)
        assert fired.read_text().split() == [failpoint.partition("=")[0]], "the fault fired, once"
        assert [client.window(index).digest for index in range(5)] == digests
    log = RunLog(path)
    kept = {(report.producer, report.sequence) for _, report in log.reports()}
    log.close()
    assert kept >= set(acknowledged)
    assert max(waits) < 5.0 + 3.0  # the machine that tests run on is crowded
    note(f"selection service: {failpoint}, 1.28 M samples", recovery_s=[max(waits)], goal="5 s")
