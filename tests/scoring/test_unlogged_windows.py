"""A crash on a full disk: windows that trainers have and the log has not are drawn again as they were, whatever comes
between the crash and the trainer's next request.
"""

import logging
from contextlib import closing, contextmanager

import numpy as np
import pytest

from scoring import Control, LogUnavailable, RunLog, Selection, replay_run
from scoring.log.unlogged_windows import RECORD, UnloggedWindows
from tests.scoring.configs import changed, selection_config
from trainer import ScheduledWindows

N = 300
DISTANCE = np.random.default_rng(1).random(N).astype(np.float32)
CONFIG = selection_config(seed=7, global_batch=8, window_steps=4, num_samples=N, start=0.3, snapshot_windows=3)
BY_SCORES = changed(CONFIG, policy="importance")
TOTAL = 400
CHANGE = Control(kind="effective_size", value=0.5, author="ann")


def trainer_of(service):
    return ScheduledWindows(service, lambda progress: 0.2 + 0.3 * progress, CONFIG.window_steps, TOTAL)


def report(service, sequence, seed=0):
    rng = np.random.default_rng(seed + sequence)
    ids = rng.permutation(N)[:100]
    service.report_scores(ids, rng.random(100), kind="bss", step=sequence, producer="rank-0", sequence=sequence)


@contextmanager
def full_disk(service, monkeypatch):
    """The log takes nothing; the note is written over in place, as on a disk that is full."""

    def refuse(windows):
        raise LogUnavailable("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(service._log, "append_windows", refuse)
        yield


def crashed_on_a_full_disk(path, config, monkeypatch, *, windows=range(4, 9)):
    """Digests of the windows that a trainer got; those of `windows` while the disk was full."""
    with closing(Selection(DISTANCE, config, runlog=RunLog(path))) as service:
        trainer = trainer_of(service)
        digests = []
        for index in range(windows.start):
            report(service, index)
            digests.append(trainer.window(index).digest)
        report(service, windows.start)
        with full_disk(service, monkeypatch):
            digests += [trainer.window(index).digest for index in windows]
    return digests


def again(path, config):
    return closing(Selection(DISTANCE, config, runlog=RunLog(path)))


@pytest.mark.parametrize("config", [CONFIG, BY_SCORES], ids=["distances", "scores"])
def test_a_change_before_the_trainers_next_request_lands_after_the_windows_it_has(config, tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    digests = crashed_on_a_full_disk(path, config, monkeypatch)
    with again(path, config) as service:
        assert service.next_window == 4, "the log has the first four"
        report(service, 100)
        reply = service.control(CHANGE if config is CONFIG else Control(kind="policy", value="bss", author="ann"))
        assert (reply.window, reply.step) == (9, 36)
        report(service, 101)
        trainer = trainer_of(service)
        later = [trainer.window(index) for index in (9, 10)]
        assert [service.window(index).digest for index in range(9)] == digests
        assert later[0].policy == ("prototypical" if config is CONFIG else "bss")
        assert config is not CONFIG or later[0].effective_size == 0.5
        assert np.isfinite(service.scores("bss")).any()
        service._compaction.snapshot()
        assert replay_run(service._log, config, DISTANCE).reproduced
    with again(path, config) as service:
        assert [service.window(index).digest for index in range(9)] == digests
        assert service.window(10).digest == later[1].digest


def test_a_second_crash_in_between_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    digests = crashed_on_a_full_disk(path, BY_SCORES, monkeypatch)
    with again(path, BY_SCORES) as service:
        report(service, 100)
        assert service.control(Control(kind="policy", value="bss", author="ann")).window == 9
        with full_disk(service, monkeypatch):
            assert trainer_of(service).window(5).digest == digests[5]
    with again(path, BY_SCORES) as service:
        report(service, 101)
        assert service.next_window == 4
        assert service.state()["control_version"] == 1
        trainer_of(service).window(9)
        assert [service.window(index).digest for index in range(9)] == digests
        assert replay_run(service._log, BY_SCORES, DISTANCE).reproduced


def test_a_change_of_the_table_waits_for_the_windows(tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    crashed_on_a_full_disk(path, BY_SCORES, monkeypatch)
    closing_round = Control(kind="round", value="bss", author="sweep")
    with again(path, BY_SCORES) as service:
        with pytest.raises(ValueError, match="must follow a drawn window"):
            service.control(closing_round)
        trainer_of(service).window(9)
        service.report_scores(np.arange(N), np.random.default_rng(5).random(N), step=200, producer="sweep", sequence=0)
        assert service.control(closing_round).window == 10


def test_without_the_note_a_change_lands_in_a_window_that_was_consumed(tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    monkeypatch.setattr(
        "scoring.log.unlogged_windows.UnloggedWindows.add", lambda self, window, *, scores_through: None
    )
    digests = crashed_on_a_full_disk(path, CONFIG, monkeypatch)
    with again(path, CONFIG) as service:
        assert service.control(CHANGE).window == 4
        trainer_of(service).window(9)
        assert service.window(4).digest != digests[4]


def test_the_note_is_written_in_place_and_a_damaged_one_is_empty(tmp_path, caplog):
    path = tmp_path / "unlogged"
    UnloggedWindows(path).add(7, scores_through=12)
    before = path.stat()
    kept = UnloggedWindows(path)
    assert (kept.end, kept.scores_through) == (8, 12)
    kept.add(3, scores_through=12)
    assert UnloggedWindows(path).end == 8
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, RECORD.size)
    path.write_bytes(b"\xff" * RECORD.size)
    assert (UnloggedWindows(path).end, UnloggedWindows(path).scores_through) == (0, 0)
    with caplog.at_level(logging.WARNING):
        UnloggedWindows(tmp_path / "nowhere" / "unlogged").add(1, scores_through=0)
    assert "a change may alter it" in caplog.text


def test_a_new_run_in_an_old_folder_has_no_unlogged_windows(tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    crashed_on_a_full_disk(path, CONFIG, monkeypatch)
    for file in tmp_path.glob("run.sqlite*"):
        if file.suffix != ".unlogged":
            file.unlink()
    with again(path, CONFIG) as service:
        assert service.control(CHANGE).window == 0
