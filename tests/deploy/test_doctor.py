"""The doctor: each thing that can be wrong on a machine is found when it is, and comes with what to do."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.remote.doctor import checks
from deploy.remote.doctor.checks import Finding, check_images, check_ports, check_token, examine
from deploy.runs.config import DataConfig
from loader import build_index
from tests.soak.storage import ShardServer


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_a_sound_machine_has_no_errors_and_every_check_speaks(
    capsys: pytest.CaptureFixture[str], digits: DataConfig, tmp_path: Path
) -> None:
    assert main(["doctor", "--out", str(tmp_path / "runs"), "--index", digits.index, "--json"]) == 0
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    expected = {"python", "torch", "ray", "faiss", "cpu", "shared memory", "disk", "run directory", "gpu"}
    expected |= {"jpeg decoder", "dali"}
    expected |= {"ray authentication", "token", "ports", "index", "shards"}
    assert expected <= set(findings)
    assert findings["index"]["found"].startswith("1,437 samples in ")
    assert "was read and decoded" in findings["shards"]["found"]
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_comes_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(checks, "LEAST_SHARED", 1 << 60)
    monkeypatch.setattr(checks, "LEAST_DISK", 1 << 60)
    found = by_check(examine(directory=tmp_path, index=tmp_path / "none.parquet"))
    assert (found["ray authentication"].level, found["index"].level) == ("error", "error")
    assert "unset RAY_AUTH_MODE" in found["ray authentication"].advice
    assert "tempera shards index" in found["index"].advice
    assert "--shm-size" in found["shared memory"].advice
    assert "make room" in found["disk"].advice


@pytest.mark.parametrize(
    "case",
    [("a" * 64, 0o600, "ok", ""), ("a" * 64, 0o644, "warning", "chmod 600"), ("short", 0o600, "warning", "too short")],
)
def test_a_token_must_be_long_and_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, int, str, str]
) -> None:
    text, mode, level, advice = case
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    found = by_check(list(check_token(tmp_path)))["token"]
    assert (found.level, advice in found.advice) == (level, True)
    assert text not in found.found


def test_a_taken_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(checks, "PORTS", {port: "a test"})
        (taken,) = check_ports(tmp_path)
    assert f"{port} (a test)" in taken.found
    (free,) = check_ports(tmp_path)
    assert "are free" in free.found


def test_a_shard_that_changed_after_indexing_is_found(digits: DataConfig, tmp_path: Path) -> None:
    folder = shutil.copytree(Path(digits.index).parent, tmp_path / "train")
    index = folder / "index.parquet"
    shard = sorted(folder.glob("*.tar"))[0]
    assert [finding.level for finding in check_images(index)] == ["ok", "ok"]
    shard.write_bytes(shard.read_bytes()[: -(1 << 16)])
    (stale,) = check_images(index)
    assert stale.level == "error"
    assert "tempera shards index" in stale.advice


def test_an_index_on_a_private_host_is_read_when_the_host_is_allowed(
    capsys: pytest.CaptureFixture[str], digits: DataConfig, tmp_path: Path
) -> None:
    tars = sorted(Path(digits.index).parent.glob("*.tar"))
    index = tmp_path / "served.parquet"
    with ShardServer(tars[0].parent) as server:
        build_index([f"{server.url}/{tar.name}" for tar in tars], index, allow_hosts=("127.0.0.1",))
        words = ["doctor", "--out", str(tmp_path / "runs"), "--index", str(index), "--json"]
        assert main(words) != 0
        refused = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
        assert "127.0.0.1" in refused["index"]["advice"]
        assert main([*words, "--allow-hosts", "127.0.0.1"]) == 0
        found = {finding["check"]: finding["level"] for finding in json.loads(capsys.readouterr().out)["findings"]}
        assert (found["index"], found["shards"]) == ("ok", "ok")
