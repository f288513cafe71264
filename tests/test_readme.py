"""The READMEs' commands and links exist, the first is short, and its example runs as printed but for its size."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from deploy.cli import build_app
from deploy.runs.config import DataConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PACKAGES = ("loader", "scoring", "trainer", "deploy", "deploy/reports")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / package / "README.md" for package in PACKAGES)]
GROUPS = ("shards", "set", "eval", "bench", "manifest")
SMALLER = {"1000": "3", "256": "16", "== 500": "== 1", "Transform()": "Transform(size=32)"}


def test_the_readme_has_at_most_1200_words() -> None:
    assert len(README.split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_tempera_command_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = {tuple([*line.split(), ""][1:3]) for line in lines if line.startswith("tempera ")}
    for first, second in commands:
        with pytest.raises(SystemExit) as stop:
            build_app().cli(prog="tempera", args=[first, second, "--help"] if first in GROUPS else [first, "--help"])
        assert stop.value.code == 0, (first, second)
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
