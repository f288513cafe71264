"""The checker is checked: a real run keeps every promise, and every forged history is caught by its invariant."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig, RunConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir
from tests.faults.oracle import RECORDED
from tests.integration.checker import Evidence, check, read_evidence
from tests.soak.verdict import reference_decoder

SETTINGS = (RECORDED, "train.checkpoint_every=8", "train.total_steps=32")


@pytest.fixture(scope="module")
def config(digits: DataConfig) -> RunConfig:
    return override(debug(digits), SETTINGS)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was stopped in the middle of a window, after a checkpoint, and resumed."""
    run = RunDir(tmp_path_factory.mktemp("checked") / "run")
    asked = iter(range(10_000))
    launch_in_process(config, run, should_stop=lambda: next(asked) == 11)
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    newest.rename(run.path / "lost")  # as if it had been killed before the last checkpoint was whole
    launch_in_process(config, run)
    return run


@pytest.fixture
def evidence(run: RunDir) -> Evidence:
    return read_evidence(run.path)


def test_a_real_run_keeps_every_promise(evidence: Evidence, config: RunConfig):
    verdict = check(evidence, reference=reference_decoder(config), longest_gap_s=30.0)
    assert verdict.breaches == {}
    assert (verdict.steps, verdict.draws) == (32, 32 * 32)
    first, second = evidence.incarnations
    assert second[0]["step"] == 8 < first[-1]["step"]  # steps 8 to 11 were consumed twice, by two lineages


def test_the_digest_is_that_of_an_uninterrupted_run(evidence: Evidence, config: RunConfig, tmp_path: Path):
    whole = RunDir(tmp_path / "whole")
    launch_in_process(replace(config, fleet=replace(config.fleet, loaders=2)), whole)
    assert check(read_evidence(whole.path)).digest == check(evidence).digest


def lost_draw(lines: list[Any]) -> None:
    for name in ("draws", "samples", "probability", "pixels"):
        lines[20][name].pop(3)


def repeated_draw(lines: list[Any]) -> None:
    lines[20]["draws"][3], lines[20]["samples"][3] = lines[20]["draws"][2], lines[20]["samples"][2]


def substituted_and_delivered(lines: list[Any]) -> None:
    draw, sample = lines[20]["draws"][3], lines[20]["samples"][3]
    lines[20]["substituted"] = [{"draw": draw, "sample": sample, "key": "k", "reason": "none"}]


def long_wait(lines: list[Any]) -> None:
    for line in lines[20:]:
        line["time"] += 100.0


def with_value(name: str, place: int, change: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    """Forge one value of the line of a step."""

    def forge(lines: list[Any]) -> None:
        lines[20][name][place] = change(lines[20][name][place])

    return forge


FORGERIES: dict[str, tuple[str, Callable[[list[Any]], object]]] = {
    "lost draw": ("I1", lost_draw),
    "repeated draw": ("I1", repeated_draw),
    "another sample": ("I1", with_value("samples", 3, lambda sample: sample + 1)),
    "substituted and delivered": ("I1", substituted_and_delivered),
    "step twice": ("I2", lambda lines: lines.insert(12, lines[11])),
    "step skipped": ("I2", lambda lines: lines.pop(12)),
    "wrong pixel": ("I3", lambda lines: lines[20].update(pixels=["0" * 16] * len(lines[20]["pixels"]))),
    "stale batch after resume": ("I6", lambda lines: lines[1].update(samples=lines[0]["samples"])),
    "version of another window": ("I5", lambda lines: lines[20].update(version=lines[20]["version"] + 1)),
    "impossible probability": ("I9", with_value("probability", 0, lambda value: 0.0)),
    "probability of another draw": ("I9", with_value("probability", 3, lambda value: 0.5 * value)),
    "long wait": ("I8", long_wait),
}
"""Name -> invariant that must be broken, and what changes the lines of the second incarnation."""


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_history_is_caught(name: str, evidence: Evidence, config: RunConfig):
    invariant, forge = FORGERIES[name]
    first, second = (list(copy.deepcopy(lines)) for lines in evidence.incarnations)
    forge(second)
    forged = replace(evidence, incarnations=(tuple(first), tuple(second)))
    verdict = check(forged, reference=reference_decoder(config), most_pixels=1024, longest_gap_s=30.0)
    assert invariant in verdict.breaches


def test_a_control_in_force_too_early_is_caught(evidence: Evidence):
    late = {"kind": "effective_size", "value": "0.5", "window": 2, "version": 1}
    early = replace(evidence.windows[1], effective_size=0.5)
    entries = (*evidence.entries, late)
    assert "I5" in check(replace(evidence, entries=entries)).breaches  # window 2 is not drawn under it
    windows = {**evidence.windows, 1: early}
    breaches = check(replace(evidence, entries=evidence.entries, windows=windows)).breaches["I5"]
    assert "window 1: effective_size 0.5 in force" in breaches[0]


def test_a_lost_acknowledgement_is_caught(evidence: Evidence):
    control = {"kind": "effective_size", "value": 0.5, "window": 2, "version": 1}
    scores = {"producer": "trainer-0", "report": 10**6}
    breaches = check(replace(evidence, acknowledged=(control, scores))).breaches["I4"]
    assert len(breaches) == 2
    kept = next(iter(evidence.scores))
    assert check(replace(evidence, acknowledged=({"producer": kept[0], "report": kept[1]},))).kept


def test_a_good_sample_that_is_replaced_is_caught(evidence: Evidence):
    lines = copy.deepcopy(list(evidence.incarnations[1]))
    window = evidence.windows[lines[20]["step"] // 8]
    assert window.ids is not None
    bad = lines[20]["samples"][3]
    lines[20]["samples"][3] = int(window.ids[window.num_draws])
    lines[20]["substituted"] = [{"draw": lines[20]["draws"][3], "sample": bad, "key": "k", "reason": "crc"}]
    forged = replace(evidence, incarnations=(evidence.incarnations[0], tuple(lines)))
    assert set(check(forged).breaches) == {"I7"}
    assert check(replace(forged, poisoned=frozenset({bad}))).kept
