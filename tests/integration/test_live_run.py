"""A live run under Ray, driven from other processes by the command line alone, as a person would.

All tests are about one run, because a start of Ray costs a minute of two cores: it is hit, scaled, stopped and resumed
first, and then lives on for the others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.api.client import RunClient
from deploy.launch.cluster import ONE_MACHINE
from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir
from tests.integration import doors
from tests.runs import losses, wait_for

TEMPERA = (sys.executable, "-m", "deploy.cli")
SETTINGS = ("train.checkpoint_every=24", "train.log_every=1", "fleet.loaders=2", "pictures=false")
ENDLESS = (*SETTINGS, "train.total_steps=100000")
PATIENCE_S = 400.0

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


def tempera(*words: object) -> dict[str, Any]:
    """Run a command in a process of its own; its JSON answer."""
    done = subprocess.run(
        [*TEMPERA, *map(str, words), "--json"], check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def refused(*words: object) -> str:
    """Run a command that must end with exit status 2; what it says."""
    done = subprocess.run([*TEMPERA, *map(str, words)], check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2, done.stderr
    return done.stderr


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([*TEMPERA, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def alive(run: RunDir, *words: object, steps: int) -> Iterator[subprocess.Popen[str]]:
    """A command that trains under Ray in another process, from its first steps on."""
    process = start(*words)
    try:
        wait_for(lambda: len(losses(run)) >= steps, "the first steps", process)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


@dataclass(frozen=True)
class Survivor:
    """A run that was hit, scaled, stopped and resumed, and lives."""

    run: RunDir
    process: subprocess.Popen[str]
    losses: list[tuple[int, float]]
    """Up to some steps after it was resumed; nobody has steered until then."""
    stopped_at: int
    kinds: set[str]
    """Kinds of the entries in its log when it was stopped."""


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory, digits: DataConfig) -> Iterator[Survivor]:
    """A loader and the selection service are killed, a third loader joins, the run is stopped, and resumed."""
    run = RunDir(tmp_path_factory.mktemp("live") / "run")
    words = ["--index", digits.index, "--prototypes", digits.prototypes, "--out", run.path, "--set", *ENDLESS]
    with alive(run, "train", "debug", *words, steps=3) as process:
        status = tempera("status", "--run", run.path)
        hit = next(loader["pid"] for loader in status["loaders"] if loader["state"] == "ready")
        os.kill(hit, signal.SIGKILL)
        os.kill(status["selection"]["pid"], signal.SIGKILL)
        assert tempera("scale", 3, "--run", run.path)["size"] == 3
        with RunClient.attach(run) as client:
            wait_for(lambda: len({loader["pid"] for loader in ready(client)} - {hit}) == 3, "a third loader", process)
        step = len(losses(run))
        wait_for(lambda: len(losses(run)) > step, "a step after it", process)
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
    stopped_at = len(losses(run))
    entries = tempera("log", "--run", run.path, "--limit", 1_000_000)["entries"]
    with alive(run, "resume", run.path, steps=stopped_at + 5) as process:
        yield Survivor(run, process, losses(run), stopped_at, {entry["kind"] for entry in entries})


def ready(client: RunClient) -> list[dict[str, Any]]:
    return [loader for loader in client.get("loaders")["members"] if loader["state"] == "ready"]


@pytest.fixture
def live(survivor: Survivor) -> tuple[RunDir, subprocess.Popen[str]]:
    """A run that goes on for as long as the tests need it."""
    return survivor.run, survivor.process


def test_scaling_killing_and_resuming_change_no_loss(survivor: Survivor, tmp_path: Path, digits: DataConfig) -> None:
    """A loader and the selection service died, a loader joined, the run was stopped and resumed: the losses are those
    of the same run in one process without Ray, bit for bit, because batches are values and the run is a log.
    """
    assert {"loader_lost", "scale", "schedule"} <= survivor.kinds
    assert 3 < survivor.stopped_at < len(survivor.losses)
    whole = RunDir(tmp_path / "whole")
    config = override(debug(digits), ENDLESS)
    launch_in_process(config, whole, should_stop=lambda: len(losses(whole)) >= len(survivor.losses))
    assert survivor.losses == losses(whole)


def test_a_change_lands_in_the_window_that_its_reply_names(live: tuple[RunDir, subprocess.Popen[str]]) -> None:
    run, process = live
    version = tempera("status", "--run", run.path)["selection"]["control_version"]
    held = tempera("set", "effective-size", 0.5, "--run", run.path, "--reason", "look wider")
    stale = refused("set", "temperature", 0.3, "--run", run.path, "--expected-version", version)
    assert "expected_version must be the current control version" in stale
    refused("set", "effective-size", 0.9, "--run", run.path)
    released = tempera("release", "--run", run.path)
    entries = tempera("log", "--run", run.path, "--limit", 1000)["entries"]
    by_kind = {entry["kind"]: entry for entry in entries if entry["author"] != "trainer"}
    assert by_kind["effective_size"]["window"] == held["window"]
    assert by_kind["effective_size"]["effective_size"] == pytest.approx(0.5)
    assert by_kind["effective_size"]["reason"] == "look wider"
    assert by_kind["release"]["window"] == released["window"]
    assert f"pid {process.pid}" in refused("resume", run.path)


def test_a_run_under_ray_rests_on_request_and_its_control_latency_is_measured(
    live: tuple[RunDir, subprocess.Popen[str]],
) -> None:
    run, process = live
    with RunClient.attach(run) as client:
        client.control("effective_size", 0.3, author="ann")
        wait_for(lambda: client.state()["latency"]["count"] > 0, "a batch under the change", process)
        wait_for(lambda: "control_latency" in kinds(client), "its latency in the log", process)
        client.post("pause", author="ann", reason="lunch")
        wait_for(lambda: client.state()["paused"], "the pause", process)
        step = len(losses(run))
        time.sleep(1.0)
        assert len(losses(run)) == step
        assert client.post("resume", author="ann")["pausing"] is False
        wait_for(lambda: len(losses(run)) > step, "a step after it", process)
        assert {"effective_size", "control_latency", "pause", "resume"} <= kinds(client)
        loaders = client.state()["fleet"]
        assert (loaders["scalable"], loaders["members"][0]["state"]) == (True, "ready")
        client.control("release", None, author="ann")


def kinds(client: RunClient) -> set[str]:
    return {entry["kind"] for entry in client.log(limit=50, changes_only=True)}


def test_watch_shows_what_status_says(live: tuple[RunDir, subprocess.Popen[str]]) -> None:
    run, _ = live
    shown = subprocess.run(
        [*TEMPERA, "watch", "--once", "--run", str(run.path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    for part in ("debug", "effective size", "temperature", "loader-0", "run log"):
        assert part in shown
    facts = tempera("inspect", "--run", run.path, "--top", 3)
    assert len(facts["top"]) == 3
    assert 1 < facts["effective_sample_size"] < 1437


def test_no_door_is_open_to_other_machines_and_no_secret_is_shown(live: tuple[RunDir, subprocess.Popen[str]]) -> None:
    """The run, its ranks, its loaders and all of Ray listen at the loopback only; tokens are in their files alone."""
    run, process = live
    endpoint = run.endpoint()
    assert endpoint is not None
    processes = doors.family(process.pid)
    open_at = doors.listeners(processes)
    assert len(processes) > 5
    assert len(open_at) > 5
    outside = {address: doors.shown([pid]) for address, pid in open_at.items() if not doors.is_loopback(address)}
    assert not outside
    owners = [doors.shown([pid]) for pid in open_at.values()]
    assert any(b"RayTrainWorker" in owner for owner in owners), "the store where ranks meet is among them"
    secrets = [run.api_token.read_bytes().strip(), Path(endpoint.token_path).read_bytes().strip()]
    assert all(len(secret) > 20 for secret in secrets)
    assert not [secret for secret in secrets if secret in doors.shown(processes)]
    own = {run.api_token, Path(endpoint.token_path)}
    kept = [path for path in run.path.rglob("*") if path.is_file() and path.resolve() not in own]
    kept += [path for path in Path("/tmp/ray/session_latest/logs").resolve().rglob("*") if path.is_file()]
    assert len(kept) > 10
    for path in kept:
        data = path.read_bytes()
        assert not [secret for secret in secrets if secret in data], path
    with RunClient.attach(run) as client:
        said = json.dumps([client.state(), client.log(limit=50)], default=str).encode()
    answers: dict[str, bytes] = {}

    def all_are_heard() -> bool:
        """Numbers are exported every few seconds, and a busy machine answers late."""
        answers.update(doors.told_to_strangers(open_at))
        return any(b"ray_tempera_" in answer for answer in answers.values())

    wait_for(all_are_heard, "an export of our numbers", process)
    assert any(b"<html" in answer for answer in answers.values()), "so is a page"
    assert not [secret for secret in secrets if any(secret in answer for answer in [said, *answers.values()])]


def test_the_run_is_closed_to_who_has_not_its_token(live: tuple[RunDir, subprocess.Popen[str]], tmp_path: Path) -> None:
    run, _ = live
    endpoint = run.endpoint()
    assert endpoint is not None
    assert endpoint.dashboard.startswith("127.0.0.1:")
    assert Path(endpoint.token_path).stat().st_mode & 0o077 == 0
    wrong = tmp_path / "wrong-token"
    wrong.write_text("0" * 64)
    code = f"import ray; ray.init(address={endpoint.address!r}, log_to_driver=False)"

    def connect(token_path: Path | str) -> int:
        """How a process ends that asks for the cluster at its loopback address, with this token."""
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path), ONE_MACHINE: "0"}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, check=False, capture_output=True, timeout=PATIENCE_S
        ).returncode

    assert connect(endpoint.token_path) == 0
    assert connect(wrong) != 0
