"""A run on a cluster of labelled nodes, from submitting to resuming, by the commands that a person uses."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.api.client import RunClient
from deploy.cli import main
from deploy.remote.jobs.ray_jobs import ENDED, connect, list_jobs
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir
from tests.deploy.forwarding import forwarded
from tests.integration.cluster_nodes import Nodes, cluster_in_namespaces, cluster_of_raylets, free_port, namespaces_work

ROLES = ("loader", "loader", "trainer")
OWN_METHOD = Path(__file__).parent.parent / "trainer" / "example_method.py"
SETTINGS = ("train.total_steps=100000", "train.checkpoint_every=50", "train.log_every=1", "train.global_batch=64")
SETTINGS += ('extensions=["example_method"]',)
PATIENCE_S = 300.0

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Nodes in network namespaces where this process may make them; else raylets side by side."""
    wanted = os.environ.get("TEMPERA_TEST_CLUSTER", "namespaces" if namespaces_work() else "raylets")
    start = {"namespaces": cluster_in_namespaces, "raylets": cluster_of_raylets}[wanted]
    with start(*ROLES) as nodes:
        yield nodes


def test_the_doctor_asks_every_node_and_measures_the_way_between_them(
    cluster: Nodes, digits: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", "--address", cluster.dashboard, "--python", sys.executable, "--out", tmp_path / "runs"]
    status = main([*map(str, [*words, "--index", digits.index]), "--json"])
    said = capsys.readouterr()
    assert said.out, said.err
    findings = json.loads(said.out)["findings"]
    assert status == (1 if any(finding["level"] == "error" for finding in findings) else 0)
    by_check: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        by_check.setdefault(finding["check"], []).append(finding)
    assert by_check["roles"][0]["found"] == "4 nodes: 2 for loaders, 1 for trainers"
    answered = {finding["node"]: finding["level"] for finding in by_check["node"]}
    assert answered == {f"{node.address} {node.role}": "ok" for node in cluster.nodes} | {cluster.head: "ok"}
    assert {finding["level"] for finding in by_check["clock"]} == {"ok"}, "the nodes are on one machine"
    assert [finding["level"] for finding in by_check["python alike"] + by_check["ray alike"]] == ["ok", "ok"]
    ways = {finding["node"]: finding["found"] for finding in by_check["network"]}
    trainer = cluster.of("trainer")[0]
    assert set(ways) == {f"{node.address} loader -> {trainer.address} trainer" for node in cluster.of("loader")}
    assert all("images/s of 224 pixels" in found for found in ways.values())
    assert "index" not in by_check, "an index that every node can read is not worth a line"


def test_a_submitted_run_keeps_its_places_through_scaling_node_loss_and_resume(
    cluster: Nodes, digits: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    words = ["submit", "debug", "--address", cluster.dashboard, "--index", digits.index]
    words += ["--prototypes", digits.prototypes, "--out", run.path, "--detach", "--python", sys.executable]
    port = free_port()
    words += ["--module", OWN_METHOD, "--method", "mean_colour", "--api-port", port, "--set", *SETTINGS]

    def tempera(*command: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, command), "--json"]) == 0, capsys.readouterr().err
        value: dict[str, Any] = json.loads(capsys.readouterr().out)
        return value

    def ready() -> list[dict[str, Any]]:
        with RunClient.attach(run) as client:
            return [loader for loader in client.get("loaders")["members"] if loader["state"] == "ready"]

    submitted = tempera(*words)
    assert submitted["placement"] == [
        'fleet.node_labels={"tempera-role":"loader"}',
        'trainers.node_labels={"tempera-role":"trainer"}',
    ]
    wait_until(lambda: steps(run) >= 5, "the first steps", cluster=cluster)
    loader_nodes, trainer_nodes = set(cluster.ids("loader").values()), set(cluster.ids("trainer").values())
    assert {loader["node"] for loader in ready()} <= loader_nodes
    assert cluster.places("RayTrainWorker") == trainer_nodes
    services = cluster.places("SelectionService") | cluster.places("LoaderFleet")
    assert len(services) == 1
    assert not services & (loader_nodes | trainer_nodes), "services must stay on the head, for nodes come and go"

    with forwarded("127.0.0.1", port) as near, RunClient(f"http://localhost:{near}", run.api_token.read_text()) as far:
        assert next(far.events())[1]["run"]["run_dir"] == str(run.path), "the API answers through a forwarded port"

    assert tempera("scale", 4, "--run", run.path)["size"] == 4
    wait_until(lambda: len(ready()) == 4, "four loaders", cluster=cluster)
    assert {loader["node"] for loader in ready()} == loader_nodes, "four loaders must use both loader nodes"
    assert tempera("scale", 2, "--run", run.path)["size"] == 2
    held = tempera("set", "effective-size", 0.4, "--run", run.path, "--reason", "a wider look")
    wait_until(lambda: steps(run) > held["step"], "the window of the change", cluster=cluster)
    wait_until(lambda: len(ready()) == 2, "two loaders", cluster=cluster)

    ids = cluster.ids("loader")
    at_work = ready()[0]["node"]
    lost, kept = sorted(cluster.of("loader"), key=lambda node: ids[node.address] != at_work)
    kept_id = ids[kept.address]
    lost.kill()
    before = steps(run)
    wait_until(lambda: steps(run) >= before + 10, "training after a node was lost", cluster=cluster)
    wait_until(
        lambda: [loader["node"] for loader in ready()] == [kept_id] * 2,
        "two loaders on the other node",
        cluster=cluster,
    )

    ended = tempera("stop", "--job", submitted["job"], "--address", cluster.dashboard)
    assert ended["status"] == "STOPPED"
    stopped_at = steps(run)
    assert run.endpoint() is None
    again = tempera(*words)
    wait_until(lambda: steps(run) >= stopped_at + 5, "steps after resuming", cluster=cluster)
    listed = {job["job_id"]: job["status"] for job in tempera("jobs", "--address", cluster.dashboard)["jobs"]}
    assert [listed[job["job"]] for job in (submitted, again)] == ["STOPPED", "RUNNING"]
    tempera("stop", "--job", again["job"], "--address", cluster.dashboard)

    logged = [line["step"] for line in run.metric_lines() if "loss" in line]
    assert logged == list(range(1, len(logged) + 1)), "every step once, through the loss of a node and a restart"
    kinds = [entry["kind"] for entry in tempera("log", "--run", run.path, "--limit", 1_000_000)["entries"]]
    assert {"scale", "effective_size", "loader_lost"} <= set(kinds)
    assert tempera("replay", run.path)["different"] == []


def steps(run: RunDir) -> int:
    """The last logged step."""
    lines = [line["step"] for line in run.metric_lines(tail=3) if "loss" in line] if run.metrics.is_file() else []
    return lines[-1] if lines else 0


def wait_until(condition: Callable[[], bool], what: str, *, cluster: Nodes) -> None:
    """Wait; an ended job, or too long a wait, shows the job's log."""
    client = connect(cluster.dashboard)
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        newest = list_jobs(client)[0]
        if newest.status in ENDED or time.monotonic() > deadline:
            log = client.get_job_logs(newest.job_id)[-6000:]
            pytest.fail(f"no {what}: {newest.status} {newest.message}\n{log}\n{ray_logs(cluster)}")
        time.sleep(0.3)


def ray_logs(cluster: Nodes) -> str:
    """The end of what the supervisor of the newest job wrote."""
    found = sorted(
        cluster.temp.glob("session_latest/logs/jobs/supervisor-*.log"), key=lambda path: path.stat().st_mtime
    )
    return found[-1].read_text()[-3000:] if found else ""
