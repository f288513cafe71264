"""Every hostile input gets its verdict: no crash, no hang, no memory to speak of, no code of its own run."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests.hostile import corpus
from tests.hostile.case import EITHER

DEADLINE_S = 60.0
"""Wall time for one input on a crowded machine; its processor time has the closer bound."""
PROCESSOR_S = 3.0
MOST_MB = 64.0
REFUSED = "accepted or refused"
"""Damage that a format may carry without notice, or not."""
REPEATED = ("tar/", "image/", "index/", "prototypes/")


@dataclass(frozen=True)
class Outcome:
    """What came of one input."""

    verdict: str
    message: str = ""
    seconds: float = 0.0
    grown_mb: float = 0.0
    canary: bool = False

    def complaint(self, case: dict[str, Any]) -> str:
        """What is wrong with it; nothing when all is well."""
        wanted = {EITHER: ("accepted", "substituted")}.get(case["verdict"], (case["verdict"],))
        if case["verdict"] == REFUSED and self.verdict not in ("crash", "hang"):
            wanted = (self.verdict,)
        if self.verdict not in wanted or case["says"] not in self.message:
            return f"wanted {case['verdict']} {case['says']!r}, got {self.verdict}: {self.message}"
        if self.canary:
            return "it ran code of its own"
        if self.grown_mb > MOST_MB or self.seconds > PROCESSOR_S:
            return f"it took {self.grown_mb} MB and {self.seconds} s"
        return ""


class Judge:
    """Processes that judge a manifest: when one dies or hangs, the next goes on behind the input that did it."""

    def __init__(self, folder: Path) -> None:
        self.manifest = folder / "manifest.json"
        self.cases: list[dict[str, Any]] = json.loads(self.manifest.read_text())
        self.outcomes: dict[str, Outcome] = {}
        self.ends: list[dict[str, Any]] = []
        first = 0
        while first < len(self.cases):
            first = self._run(first)

    def _run(self, first: int) -> int:
        """Judge from an input on; the number of the next one after a crash, or the end."""
        canary = self.manifest.parent / "canary"
        environment = {**os.environ, "TEMPERA_CANARY": str(canary), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.hostile.judge", str(self.manifest), str(first)]
        errors = (self.manifest.parent / "errors.txt").open("ab")
        begun = first
        with errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as child:
            assert child.stdout is not None
            verdict, started = "crash", False
            for line in lines(child.stdout):
                if line is None:
                    verdict = "hang"
                    child.kill()
                    break
                if "begun" in line:
                    begun, started = line["begun"], True
                elif "number" in line:
                    fields = {name: line[name] for name in ("verdict", "message", "seconds", "grown_mb", "canary")}
                    self.outcomes[self.cases[line["number"]]["name"]] = Outcome(**fields)
                else:
                    self.ends.append(line)
                    return len(self.cases)
        assert started, f"the judge must start; {(self.manifest.parent / 'errors.txt').read_text()[-2000:]}"
        self.outcomes[self.cases[begun]["name"]] = Outcome(verdict, f"exit status {child.returncode}")
        canary.unlink(missing_ok=True)
        return begun + 1


def lines(stream: IO[bytes]) -> Iterator[dict[str, Any] | None]:
    """JSON lines as they come; None when nothing comes for long."""
    os.set_blocking(stream.fileno(), False)
    rest, patience = b"", 3 * DEADLINE_S
    while True:
        if not select.select([stream], [], [], patience)[0]:
            yield None
            return
        piece = stream.read()
        if not piece:
            return
        whole, _, rest = (rest + piece).rpartition(b"\n")
        for line in whole.splitlines():
            yield json.loads(line)
        patience = DEADLINE_S


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder = tmp_path_factory.mktemp("hostile")
    corpus.write(folder)
    return Judge(folder)


@pytest.mark.parametrize("name", [case.name for case in corpus.cases()])
def test_a_hostile_input_gets_its_verdict(judge: Judge, name: str) -> None:
    case = next(case for case in judge.cases if case["name"] == name)
    assert not judge.outcomes[name].complaint(case)


def test_the_corpus_is_large_and_mixed(judge: Judge) -> None:
    assert len(judge.cases) >= 200
    verdicts = Counter(outcome.verdict for outcome in judge.outcomes.values())
    assert {"accepted", "substituted", "BadShardError", "MissingIndexError", "StaleIndexError"} <= verdicts.keys()


def test_what_was_opened_is_closed_when_all_is_over(judge: Judge) -> None:
    """After hundreds of failures: no descriptor, no child and no shared memory more than before the first."""
    (end,) = judge.ends
    assert end["after"]["descriptors"] == end["before"]["descriptors"]
    assert end["after"]["children"] == end["before"]["children"] == 0
    ours = {name for name in end["after"]["shared"] if name.startswith("judge")}
    assert not ours


def test_the_same_corpus_comes_out_each_time(judge: Judge, tmp_path: Path) -> None:
    """Some of each family: the bytes are a pure function of the code."""
    for number, case in enumerate(corpus.cases()):
        if number % 40 == 0:
            written = judge.manifest.parent / judge.cases[number]["file"]
            assert case.make() == written.read_bytes(), case.name


def test_a_verdict_that_is_not_kept_is_seen(tmp_path: Path) -> None:
    """The judge sees a crash, a hang, a canary and memory: it is given some of each."""
    case = {"verdict": "ValueError", "says": "must be"}
    assert not Outcome("ValueError", "it must be so").complaint(case)
    assert "got KeyError" in Outcome("KeyError", "must be").complaint(case)
    assert "got crash" in Outcome("crash", "exit status -11").complaint(case)
    assert "got hang" in Outcome("hang").complaint({**case, "verdict": REFUSED, "says": ""})
    assert "code of its own" in Outcome("ValueError", "must be", canary=True).complaint(case)
    assert "65.0 MB" in Outcome("ValueError", "must be", grown_mb=65.0).complaint(case)
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", "import os; os.abort()"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert list(lines(child.stdout)) == []
    assert time.monotonic() - started < DEADLINE_S
