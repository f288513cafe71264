"""Reports that newer ones replace leave the log, and a crash while they do loses no score that holds."""

import numpy as np

from scoring import RunLog, Selection, replay_run
from scoring.log.snapshots import SnapshotStore
from tests.scoring.crashes import CONNECT, Crash, Faults, N, died, failing_connect, small_config


def trimmed_run(path, faults, monkeypatch, *, policy="uniform"):
    """Reports that overwrite each other, in a run that trims its log; scores as acknowledged, up to the crash."""
    acknowledged, rng = [np.full(N, np.nan)], np.random.default_rng(2)
    with monkeypatch.context() as patch:
        patch.setattr(CONNECT, failing_connect(faults, path))
        patch.setattr("scoring.log.runlog.TRIMMED_AT_ONCE", 3)
        try:
            faults.log = RunLog(path)
            config = small_config(policy=policy, snapshot_windows=2)
            selection = Selection(None, config, runlog=faults.log)
            for index in range(8):
                ids = rng.permutation(N)[: 60 if index < 2 else N]
                report = {"kind": "loss", "step": index, "producer": "ab"[index % 2], "sequence": index}
                selection.report_scores(ids, rng.random(len(ids)), **report)
                acknowledged.append(selection.scores("loss"))
                selection.window(index)
        except Crash:
            pass
    return acknowledged


def test_replaced_reports_leave_the_log(tmp_path, monkeypatch):
    complete = Faults()
    *_, scores = trimmed_run(tmp_path / "run.sqlite", complete, monkeypatch)
    assert complete.log.stored_scores() <= 2 * N < 6 * N
    config = small_config(policy="uniform")
    for snapshot in SnapshotStore(tmp_path / "run.sqlite").paths():
        snapshot.unlink()
    complete.log.close()
    log = RunLog(tmp_path / "run.sqlite")
    recovered = Selection(None, config, runlog=log)
    np.testing.assert_array_equal(recovered.scores("loss"), scores)
    again = {"kind": "loss", "step": 3, "producer": "b", "sequence": 3}
    recovered.report_scores(np.arange(N), np.zeros(N), **again)  # sent again after it has left the log
    np.testing.assert_array_equal(recovered.scores("loss"), scores)
    assert replay_run(log, config, None).reproduced
    log.close()


def test_reports_that_a_window_has_read_stay(tmp_path, monkeypatch):
    faults = Faults()
    trimmed_run(tmp_path / "run.sqlite", faults, monkeypatch, policy="importance")
    assert faults.log.stored_scores() == 2 * 60 + 6 * N


def test_a_crash_while_the_log_is_trimmed_loses_no_score(tmp_path, monkeypatch):
    complete = Faults()
    trimmed_run(tmp_path / "whole.sqlite", complete, monkeypatch)
    for at in range(complete.count - 12, complete.count + 1):
        faults = Faults(at, ("before", "torn", "after")[at % 3])
        path = tmp_path / f"{at}" / "run.sqlite"
        acknowledged = trimmed_run(path, faults, monkeypatch)
        copy = died(path, tmp_path / f"{at}-after")
        faults.log.close()
        log = RunLog(copy)
        recovered = Selection(None, small_config(policy="uniform"), runlog=log)
        last = recovered.scores("loss")
        in_doubt = max((r.step for _, r in log.reports()), default=-1) >= len(acknowledged) - 1
        if not in_doubt:
            np.testing.assert_array_equal(last, acknowledged[-1])
        held = ~np.isnan(acknowledged[-1])
        assert not np.isnan(last[held]).any()
        log.close()
