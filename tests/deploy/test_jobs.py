"""The code shipped with a job, its command line, and its log followed through a lost connection."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.cli import main
from deploy.observe import progress_lines
from deploy.remote.jobs import ray_jobs
from deploy.remote.jobs.shipping import PACKAGES, package_folders, runtime_environment, shipped_files
from deploy.runs.rundir import RunError

ROOT = Path(__file__).parent.parent.parent
LIST_SHIPPED = "from deploy.remote.jobs.shipping import *; print([str(p) for p in shipped_files()], package_folders())"


class LogServer:
    """A job server's client of whose log connections all but the last break."""

    def __init__(self, chunks: list[str], breaks: list[int]) -> None:
        self.chunks, self.breaks = chunks, breaks

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        until = self.breaks.pop(0) if self.breaks else None
        for chunk in self.chunks[:until]:
            yield chunk
        if until is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        times = {"start_time": 0, "end_time": 90_000, "metadata": None, "message": None}
        return SimpleNamespace(submission_id=job_id, job_id=None, status="SUCCEEDED", **times)


def test_a_log_is_passed_on_once_through_lost_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "POLL_S", 0.01)
    facts = {"step": 3, "total_steps": 9, "loss": 0.5, "images_per_s": 100.0}
    chunks = ["first\nsec", "ond\n" + progress_lines.encode(facts) + "\nthi", "rd\nlast"]
    lines: list[str] = []
    seen: list[dict[str, object]] = []
    server = LogServer(chunks, breaks=[1, 2, 0])
    assert ray_jobs.follow(server, "job", show=lines.append, advance=seen.append) == "SUCCEEDED"
    assert lines == ["first", "second", "third", "last"]
    assert seen == [facts]


def test_a_log_that_stays_lost_is_given_up_and_the_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "POLL_S", 0.01)
    monkeypatch.setattr(ray_jobs, "RECONNECT_S", 0.05)
    with pytest.raises(RunError, match="the job goes on"):
        ray_jobs.follow(LogServer([], breaks=[0] * 1000), "job", show=lambda _: None, advance=lambda _: None)


@pytest.mark.parametrize("line", ["tempera-progress {", 'tempera-progress {"step": 1}', "tempera-progress 3", "loss 1"])
def test_a_line_that_is_no_progress_is_a_line(line: str) -> None:
    assert progress_lines.decode(line) is None


def test_every_word_of_a_job_is_quoted_for_the_shell() -> None:
    words = ["train", "debug", "--set", 'extensions=["a"]', "name=x; touch /tmp/y", "$(id)"]
    entry = ray_jobs.entry_point(words)
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {entry}"], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == ["python", "-P", "-m", "deploy.cli", *words]
    assert shlex.split(entry)[4:] == words


def test_a_job_ships_our_packages_and_the_users_modules(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    (tmp_path / "own" / "__pycache__").mkdir(parents=True)
    (tmp_path / "own" / "__init__.py").touch()
    with runtime_environment([tmp_path / "mine.py", tmp_path / "own"]) as environment:
        assert [Path(folder).name for folder in environment["py_modules"]] == list(PACKAGES)
        folder = Path(environment["working_dir"])
        shipped = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        assert shipped == {"mine.py", "own", "own/__init__.py"}
        assert not any("TOKEN" in name or "PORT" in name for name in environment["env_vars"])
    assert not folder.exists()
    with runtime_environment(api_port=8300) as environment:
        assert environment["env_vars"]["TEMPERA_API_PORT"] == "8300", "a known port can be forwarded"


@pytest.mark.parametrize(("name", "message"), [("deploy.py", "named like one of ours"), ("none.py", "neither")])
def test_a_module_that_cannot_be_shipped_is_refused(tmp_path: Path, name: str, message: str) -> None:
    if name == "deploy.py":
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message), runtime_environment([tmp_path / name]):
        pass


def test_a_wheel_ships_the_modules_that_a_checkout_ships(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(source)], check=True, capture_output=True)
    code = f"import sys; sys.path[:0] = [{str(tmp_path / 'site')!r}]; {LIST_SHIPPED}"
    said = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    listed = json.loads(said.stdout.split("] [")[0].replace("'", '"') + "]")
    modules = {str(Path(path).relative_to(tmp_path / "site")) for path in listed if path.endswith(".py")}
    roots = [Path(folder).parent for folder in package_folders()]
    assert modules == {str(path.relative_to(roots[0])) for path in shipped_files() if path.suffix == ".py"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--index", "data/index.parquet", "--out", "/r"], "--index must be an absolute path"),
        (["--index", "/d/i.parquet", "--out", "/r", "--masking", "blok"], "Did you mean 'block'"),
        (["--index", "/d/i.parquet", "--out", "/r", "--method", "mea"], "Did you mean 'mae'"),
        (["--index", "/d/index.parquet", "--out", "runs/x"], "--out must be an absolute path"),
        (["--index", "/d/i.parquet", "--out", "/r", "--set", "train.total_step=3"], "Did you mean 'total_steps'"),
        (["--index", "/d/i.parquet", "--out", "/r", "--address", "head:8265"], "must be the URL"),
        (["--index", "/d/i.parquet", "--out", "/r", "--address", "ftp://head"], "must be the URL"),
        (["--index", "/d/i.parquet", "--out", "/r"], "no job server answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # set by the command; taken back after the test
    given = [] if "--address" in words else ["--address", "http://127.0.0.1:9"]
    assert main(["submit", "debug", *given, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_cluster_is_not_talked_to_without_a_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert main(["jobs", "--address", "http://127.0.0.1:9"]) == 2
    assert "Set RAY_AUTH_TOKEN_PATH" in capsys.readouterr().err
