"""Scores, controls, disks and notices that are not what they should be: what was acknowledged holds, nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir
from scoring import Control, LogUnavailable, RunLog, Selection, SelectionConfig, VersionConflict
from tests.faults.failpoints import failpoints
from tests.faults.small_run import STEPS, drive, judged, small
from tests.runs import losses, wait_for
from tests.scoring.configs import selection_config

N = 200
DISTANCE = np.random.default_rng(0).random(N).astype(np.float32)
CONFIG = selection_config(seed=3, global_batch=8, window_steps=4, num_samples=N, start=0.3)


def selection(path: Path | None = None, config: SelectionConfig = CONFIG) -> Selection:
    return Selection(DISTANCE, config, runlog=None if path is None else RunLog(path))


def reports(seed: int, count: int = 30):
    """(ids, values, step, producer, sequence) of good reports."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, N, 20), rng.random(20), int(rng.integers(0, 9)), "ab"[n % 2], n) for n in range(count)]


def send(service: Selection, report) -> object:
    ids, values, step, producer, sequence = report
    return service.report_scores(ids, values, kind="loss", step=step, producer=producer, sequence=sequence)


def hostile(report):
    """The same report with entries that cannot be taken."""
    ids, values, *rest = report
    wrong_ids = np.concatenate([ids, [-1, N, 10**12, 3, 4, 5]])
    wrong_values = np.concatenate([values, [1.0, 1.0, 1.0, np.nan, np.inf, -1.0]])
    return wrong_ids, wrong_values, *rest


def storm_of_scores(service: Selection) -> int:
    """Every report twice, late and out of order, with wrong entries among them; how many were refused."""
    sent = reports(1)
    order = np.random.default_rng(2).permutation([*range(len(sent)), *range(len(sent))])
    return sum(sum(send(service, hostile(sent[place])).rejected.values()) for place in order)


def stormy_scores() -> np.ndarray:
    service = selection()
    storm_of_scores(service)
    return service.scores("loss")


def test_wrong_repeated_and_late_scores_leave_the_state_of_a_clean_run(note):
    clean, stormy = selection(), selection()
    for report in reports(1):
        send(clean, report)
    refused = storm_of_scores(stormy)
    assert refused == 2 * 30 * 6, "the fault fired"
    np.testing.assert_array_equal(stormy.scores("loss"), clean.scores("loss"))
    assert [stormy.window(n).digest for n in range(4)] == [clean.window(n).digest for n in range(4)]
    note("scores: NaN, Inf, negative, unknown, repeated, late", seen=f"{refused} refused and counted, state equal")


def test_without_the_order_of_reports_a_late_one_overwrites(monkeypatch):
    def last_writer(self, report):
        self.values[report.ids], self.holder[report.ids] = report.values, self._number(report)

    monkeypatch.setattr("scoring.table.scores.ScoreTable.merge", last_writer)
    clean, stormy = selection(), selection()
    for report in reports(1):
        send(clean, report)
    storm_of_scores(stormy)
    assert not np.array_equal(stormy.scores("loss"), clean.scores("loss"))


def test_without_the_check_of_scores_wrong_ones_do_harm(monkeypatch):
    monkeypatch.setattr("scoring.selection.checked_report", lambda report, num_samples: (report, {}))
    with pytest.raises((IndexError, ValueError, OverflowError)):
        stormy_scores()


def racing(service: Selection, count: int) -> list[object]:
    """So many people set a value at once, all with the version they saw."""
    version = service.state()["control_version"]
    start = threading.Barrier(count)

    def race(number: int) -> object:
        start.wait()
        wish = Control(kind="effective_size", value=0.2 + number / 100, author=str(number), expected_version=version)
        try:
            return service.control(wish)
        except VersionConflict as conflict:
            return conflict

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(race, range(count)))


def test_of_concurrent_controls_one_wins_and_the_others_are_told(note):
    service = selection()
    for turn in range(1, 11):
        outcomes = racing(service, 8)
        losers = [one for one in outcomes if isinstance(one, VersionConflict)]
        assert [(error.expected, error.current) for error in losers] == [(turn - 1, turn)] * 7
        assert service.state()["control_version"] == turn
        assert len([entry for entry in service.log() if entry.kind == "effective_size"]) == turn
        assert all(str(turn) in str(loser) for loser in losers), "the loser is told the version"
    note("controls: late, repeated, concurrent", seen="80 attempts, 10 winners, 70 told the version in force")


def test_without_the_compared_version_everybody_wins(monkeypatch):
    original = Selection.control
    monkeypatch.setattr(Selection, "control", lambda self, wish: original(self, replace(wish, expected_version=None)))
    assert not any(isinstance(one, VersionConflict) for one in racing(selection(), 8))


@pytest.mark.parametrize("refusal", ["enospc", "eio"])
def test_a_full_disk_stops_acknowledgements_and_not_the_sampling(refusal, tmp_path, note):
    service = selection(tmp_path / "run.sqlite")
    with closing(service):
        send(service, reports(1)[0])
        failpoints.set(f"selection.append={refusal}@0")
        try:
            drawn = [service.window(index).digest for index in range(5)]
            with pytest.raises(LogUnavailable, match="Free some disk space"):
                send(service, reports(1)[1])
            with pytest.raises(LogUnavailable):
                service.control(Control(kind="effective_size", value=0.4, author="ann"))
        finally:
            failpoints.set("")
        assert service.control(Control(kind="effective_size", value=0.4, author="ann")).window == 5
    with closing(selection(tmp_path / "run.sqlite")) as again:
        assert [again.window(index).digest for index in range(5)] == drawn
        assert again.state()["control_version"] == 1
        assert np.isfinite(again.scores("loss")).any()
    note(f"disk: {refusal} at the run log", seen="5 windows handed out, scores and controls refused, all there after")


def test_without_waiting_for_the_commit_acknowledged_scores_are_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "scoring.log.group_commit.GroupCommit.submit", lambda self, report: self._committed.append((1, report))
    )
    with closing(selection(tmp_path / "run.sqlite")) as service:
        assert send(service, reports(1)[0]).accepted == 20
    with closing(selection(tmp_path / "run.sqlite")) as again:
        assert not np.isfinite(again.scores("loss")).any()


def steady(config, folder):
    """What a forked process does: train until it is told to stop."""
    drive(config, RunDir(Path(folder)), on_step=lambda step, metrics: time.sleep(0.05))


def test_sigterm_ends_with_a_checkpoint_in_seconds_and_loses_nothing(digits: DataConfig, tmp_path, note):
    config = small(digits)
    whole = RunDir(tmp_path / "whole")
    drive(config, whole)
    run = RunDir(tmp_path / "run")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.small_run"])
    process = context.Process(target=steady, args=(config, str(run.path)))
    process.start()
    wait_for(lambda: len(losses(run)) >= 7 or not process.is_alive(), "seven steps")
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    took = time.monotonic() - asked
    assert process.exitcode == 0
    assert took < 10
    done = losses(run)[-1][0]
    assert 7 <= done < STEPS
    assert (run.checkpoints / f"step-{done:08d}").is_dir()
    drive(config, run)
    assert judged(run).breaches == {}
    assert (judged(run).digest, losses(run)) == (judged(whole).digest, losses(whole))
    note("SIGTERM", recovery_s=[took], goal="exit 0 in 10 s", seen="checkpoint at the step, nothing lost")
