"""The command line and the Python client against a live run: HTTP only, at once, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from deploy.api.client import ChangedSince, Refused, RunClient, _value
from deploy.cli import main
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir
from tests.deploy.api_run import alive, tiny
from tests.deploy.commands import answer, refusal
from tests.deploy.forwarding import forwarded
from tests.runs import wait_for

HEAVY = ("torch", "ray", "numpy", "loader", "scoring", "trainer", "fastapi")
ROOT = Path(__file__).parents[2]
LIBRARIES = "httpx2, tyro, rich.console"
MOST = 5
"""Bound of a command's processor time, as a multiple of the import of its libraries; about two is usual."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: DataConfig) -> Iterator[RunDir]:
    with alive(tmp_path_factory.mktemp("cli") / "run", tiny(digits, steps=10**6)) as run:
        yield run


def test_a_change_is_forecast_made_logged_and_released(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--run", run.path)
    version = answer(capsys, "status", *here)["selection"]["control_version"]
    forecast = answer(capsys, "set", "effective-size", 0.4, *here, "--dry-run")
    assert forecast["version"] == version
    assert forecast["bound_steps"] == 9
    assert forecast["temperature"] > 0
    made = answer(capsys, "set", "effective-size", 0.4, *here, "--reason", "look wider")
    assert (made["version"], made["effective_size"]) == (version + 1, 0.4)
    assert made["temperature"] == pytest.approx(forecast["temperature"])
    late = refusal(capsys, "set", "temperature", 0.1, *here, "--expected-version", version)
    assert "was faster: effective_size 0.4 (look wider)" in late
    assert answer(capsys, "set", "policy", "hard", *here)["version"] == version + 2
    assert answer(capsys, "release", *here)["version"] == version + 3
    assert "under Ray" in refusal(capsys, "scale", 3, *here)
    assert "0.632" in refusal(capsys, "set", "effective-size", 0.9, *here)
    assert "alive" in refusal(capsys, "replay", run.path)
    kinds = [entry["kind"] for entry in answer(capsys, "log", *here, "--limit", 600)["entries"]]
    made = ["effective_size", "policy", "release"]
    assert [kind for kind in kinds if kind in made][-3:] == made


def test_pause_and_continue_are_seen_in_status(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--run", run.path)
    assert answer(capsys, "pause", *here, "--reason", "lunch")["pausing"] is True
    wait_for(lambda: answer(capsys, "status", *here)["status"] == "paused", "the rest")
    assert answer(capsys, "continue", *here)["pausing"] is False
    wait_for(lambda: answer(capsys, "status", *here)["status"] == "running", "the way on")


def test_watch_status_and_inspect_say_the_same(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--run", run.path)
    assert main(["watch", "--once", *map(str, here)]) == 0
    shown = capsys.readouterr().out
    for part in ("debug", "effective size", "a change lands", "local-0", "run log"):
        assert part in shown
    table = tmp_path / "table.parquet"
    facts = answer(capsys, "inspect", *here, "--top", 3, "--export", table)
    assert (len(facts["top"]), facts["exported_rows"], table.is_file()) == (3, 1437, True)
    assert run.api_token.read_text() not in json.dumps(answer(capsys, "dashboard", run.path))


def test_live_commands_import_nothing_heavy_and_answer_at_once(run: RunDir) -> None:
    code = "import sys; from deploy.cli import main; status = main(sys.argv[1:])"
    libraries_s = max(used(f"import {LIBRARIES}; status = 0")[1] for _ in range(3))
    for words in (("pause",), ("status",), ("log",), ("set", "effective-size", "0.3"), ("continue",)):
        heavy, cpu_s = used(code, *words, "--run", run.path, "--json")
        assert heavy == "[]", words
        assert cpu_s < MOST * libraries_s, words


def used(code: str, *words: object) -> tuple[str, float]:
    """Which heavy packages a program has imported at its end, and how many seconds of a processor it took."""
    end = (
        f"; import resource, sys; heavy = [name for name in {HEAVY!r} if name in sys.modules]; "
        "used = resource.getrusage(resource.RUSAGE_SELF); "
        "print('\\n', heavy, used.ru_utime + used.ru_stime); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + end, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=240,
    )
    heavy, cpu_s = done.stdout.splitlines()[-1].rsplit(" ", 1)
    return heavy.strip(), float(cpu_s)


def test_a_run_elsewhere_is_reached_by_its_address_alone(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a forwarded port, with no run directory: the command line, the event stream and the page."""
    monkeypatch.chdir(tmp_path)
    port = re.sub(r".*:", "", run.api_url() or "")
    with forwarded("127.0.0.1", int(port)) as near:
        assert near != int(port)
        monkeypatch.setenv("TEMPERA_API_URL", f"http://localhost:{near}")
        assert "TEMPERA_API_TOKEN must hold" in refusal(capsys, "status")
        monkeypatch.setenv("TEMPERA_API_TOKEN", "x" * 43)
        assert "Authorization: Bearer TOKEN" in refusal(capsys, "status")
        monkeypatch.setenv("TEMPERA_API_TOKEN", run.api_token.read_text())
        assert answer(capsys, "status")["name"] == "debug"
        assert answer(capsys, "set", "effective-size", 0.45)["effective_size"] == 0.45
        assert answer(capsys, "log", "--limit", 1)["entries"]
        with RunClient.find(None) as client:
            assert next(client.events())[0] == "state"
        with urllib.request.urlopen(f"http://localhost:{near}/") as page:
            assert b"<title>Tempera</title>" in page.read()
    assert "does not answer" in refusal(capsys, "release")


def test_a_proxy_in_the_environment_never_sees_the_token(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:9")
    with RunClient.attach(run) as client:
        assert client.state()


def test_the_client_tells_who_was_faster(run: RunDir) -> None:
    with RunClient.attach(run) as ann, RunClient.attach(run) as bob:
        seen = bob.state()["control"]["version"]
        ann.control("effective_size", 0.3, author="ann", expected_version=seen)
        with pytest.raises(ChangedSince, match="ann was faster") as late:
            bob.control("temperature", 0.2, author="bob", expected_version=seen)
        assert late.value.winner is not None
        assert (late.value.version, late.value.winner["author"]) == (seen + 1, "ann")
        with pytest.raises(Refused, match="kind"):
            bob.control("round", "pass", author="bob")


def test_a_wrong_version_without_a_winner_differs_from_other_refusals() -> None:
    conflict = httpx2.Response(409, json={"error": "not this version", "version": 0, "winner": None})
    with pytest.raises(ChangedSince, match="not this version") as late:
        _value(conflict)
    assert (late.value.version, late.value.winner) == (0, None)
    with pytest.raises(Refused) as other:
        _value(httpx2.Response(409, json={"error": "not now"}))
    assert not isinstance(other.value, ChangedSince)


def test_stop_writes_a_checkpoint_and_ends_the_run_and_its_api(
    tmp_path: Path, digits: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with alive(tmp_path / "run", tiny(digits, steps=10**6)) as run:
        wait_for(run.metric_lines, "the first steps")
        assert answer(capsys, "stop", "--run", run.path, "--reason", "enough")["stopping"] is True
        wait_for(lambda: not run.is_alive, "the end")
    assert list(run.checkpoints.glob("step-*"))
    assert "nothing to stop" in refusal(capsys, "stop", "--run", run.path)
    assert "is not running" in refusal(capsys, "token", "--run", run.path)
    facts = answer(capsys, "status", "--run", run.path)
    assert (facts["alive"], facts["progress"]["step"] > 0) == (False, True)
    stops = [entry for entry in answer(capsys, "log", "--run", run.path)["entries"] if entry["kind"] == "stop"]
    assert [entry["reason"] for entry in stops] == ["enough"]  # a window may be drawn between it and the end
