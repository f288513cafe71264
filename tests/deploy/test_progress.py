"""What moves while a command works: seen at a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deploy.cli import main
from deploy.console import ERR, progress_bar, working
from tests.runs import wait_for

HIDDEN_CURSOR = "\x1b[?25l"
"""What every bar and spinner begins with; a short one shows no more."""


class Terminal:
    """A terminal that shows standard error, and somebody who reads along."""

    def __init__(self) -> None:
        self._mine, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "w")
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def shown(self) -> str:
        """All that came so far."""
        return self._shown.decode(errors="replace")

    def close(self) -> str:
        """All that came."""
        self.stream.close()
        self._reader.join()
        os.close(self._mine)
        return self.shown()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody has the other end any more
            while data := os.read(self._mine, 4096):
                self._shown += data


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(ERR, "is_interactive", True)  # rich looks once, when the process starts
    return Terminal()


def build(folder: Path) -> list[str]:
    (folder / "images" / "red").mkdir(parents=True)
    Image.new("RGB", (40, 30), (200, 0, 0)).save(folder / "images" / "red" / "0.jpg")
    return ["shards", "build", str(folder / "images"), "--out", str(folder / "shards"), "--processes", "1"]


def verify(folder: Path) -> list[str]:
    assert main(build(folder)) == 0
    return ["shards", "verify", str(folder / "shards" / "index.parquet")]


def doctor(folder: Path) -> list[str]:
    return ["doctor", "--out", str(folder)]


@pytest.mark.parametrize(
    ("command", "shown"), [(build, "writing, then indexing shards"), (verify, "verifying"), (doctor, HIDDEN_CURSOR)]
)
def test_a_long_command_moves_at_a_terminal(
    command: Callable[[Path], list[str]],
    shown: str,
    tmp_path: Path,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = command(tmp_path)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    assert main(words) == 0
    assert shown in terminal.close()


@pytest.mark.parametrize("command", [build, verify, doctor])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["people", "script"])
def test_nothing_moves_in_a_pipe(
    command: Callable[[Path], list[str]], more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(tmp_path)
    capsys.readouterr()
    assert main([*words, *more]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [build, verify, doctor])
def test_nothing_moves_for_a_script_at_a_terminal(
    command: Callable[[Path], list[str]], tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(tmp_path)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    assert main([*words, "--json"]) == 0
    assert terminal.close() == ""


def test_a_spinner_says_what_is_going_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with working("thinking"):
        wait_for(lambda: "thinking" in terminal.shown(), "the spinner")
    monkeypatch.undo()
    terminal.close()


def test_a_bar_that_nobody_sees_can_be_moved(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("counting") as advance:
        advance(1, 2)
        advance(2, 2)
    with working("thinking"):
        pass
    assert capsys.readouterr().err == ""
