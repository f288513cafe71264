"""Commands run in this process, and what they answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.cli import main


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """Run a command that must succeed, and return its JSON."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that the user must mend, and return its one line."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tempera: ")]
    assert len(lines) == 1
    return lines[0]
