"""Run directories: found, held by one process, published only while alive."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.runs.rundir import Endpoint, RunDir, RunError, find_run, write_json

HOLD = """
import sys, time
from pathlib import Path
from deploy.runs.rundir import RunDir
with RunDir(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def endpoint(pid: int) -> Endpoint:
    return Endpoint(address="127.0.0.1:1", namespace="tempera", token_path="token", pid=pid, dashboard="")


def make_run(path: Path) -> RunDir:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return RunDir(path)


def test_a_folder_without_config_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.json is missing.*tempera train"):
        RunDir(tmp_path).require()


def test_a_published_run_is_alive_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.published(endpoint(os.getpid())):
        assert run.endpoint() == endpoint(os.getpid())
    assert run.endpoint() is None
    assert not (run.path / "cluster.json").exists()


def test_a_run_whose_driver_is_dead_is_not_alive(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write_json(run.path / "cluster.json", asdict(endpoint(child.pid)))
    assert run.endpoint() is None


def test_a_run_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"pid {child.pid}"), run.held():
        pass
    child.kill()
    child.wait()
    with run.held():
        pass


def test_find_run_prefers_the_one_alive(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old"), make_run(tmp_path / "new")
    os.utime(old.config, (1, 1))
    assert find_run(None, root=tmp_path).path == new.path
    with old.published(endpoint(os.getpid())):
        assert find_run(None, root=tmp_path).path == old.path
        with new.published(endpoint(os.getpid())), pytest.raises(RunError, match="several runs are alive"):
            find_run(None, root=tmp_path)


def test_find_run_says_what_to_do_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="tempera demo"):
        find_run(None, root=tmp_path)


def test_write_json_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_a_half_written_last_metric_line_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.metrics.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert [line["step"] for line in run.metric_lines()] == [0, 1]
