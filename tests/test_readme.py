"""The README's commands exist, and its example loop runs as printed but for its size."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from deploy.cli import build_app
from deploy.runs.config import DataConfig

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
SMALLER = {"1000": "3", "256": "16", "== 500": "== 1", "Transform()": "Transform(size=32)"}


def test_every_tempera_command_in_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    commands = {tuple([*line.split(), ""][1:3]) for line in lines if line.startswith("tempera ")}
    assert len(commands) > 10
    for first, second in commands:
        words = [first, second] if first in ("shards", "set", "eval", "bench", "manifest") else [first]
        with pytest.raises(SystemExit) as stop:
            build_app().cli(prog="tempera", args=[*words, "--help"])
        assert stop.value.code == 0, words
    capsys.readouterr()


def test_the_example_loop_runs(digits: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(Path(digits.index).parent.parent)
    monkeypatch.chdir(tmp_path)
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "BatchStream" in block]
    for printed, small in SMALLER.items():
        assert printed in example
        example = example.replace(printed, small)
    (tmp_path / "example.py").write_text(example)
    batch = runpy.run_path(str(tmp_path / "example.py"))["batch"]
    assert batch.step == 2
    assert tuple(batch.images.shape) == (16, 3, 32, 32)
