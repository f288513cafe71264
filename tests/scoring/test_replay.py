import numpy as np
import pytest

from scoring import AdaptiveGrowth, Control, Event, RunLog, Selection, replay_run
from scoring.errors import CorruptLog
from scoring.replay import redraw
from tests.scoring.configs import distances, selection_config

N = 400


def config(**changes):
    return selection_config(**{"seed": 2, "global_batch": 16, "window_steps": 4, "start": 0.3, **changes})


@pytest.fixture
def eventful(tmp_path):
    """A run in which everything happens: schedule, people, policies, scores, two rounds, a restart."""
    rng = np.random.default_rng(3)
    log = RunLog(tmp_path / "run.sqlite")
    selection = Selection(distances(N), config(kept_windows=4, snapshot_windows=3), runlog=log)
    policies = ["importance", "bss", "bss*prototypical", "hard", "uniform", "bss", "importance*bss", "prototypical"]
    for index in range(24):
        selection.window(index, effective_size=0.2 + index / 100)
        sweep = {"kind": "bss" if index % 2 else "loss", "step": index, "producer": "a", "sequence": index}
        selection.report_scores(rng.permutation(N), rng.random(N), **sweep)
        if index in (5, 14):
            selection.control(Control(kind="round", value="bss", author="trainer"))
        if index % 3 == 2:
            selection.control(Control(kind="policy", value=policies[index // 3], author="ann"))
        if index == 12:
            selection.control(Control(kind="effective_size", value=0.55, author="bob"))
            log.close()
            log = RunLog(tmp_path / "run.sqlite")
            selection = Selection(distances(N), config(kept_windows=4, snapshot_windows=3), runlog=log)
        if index == 20:
            selection.control(Control(kind="release", author="bob"))
    return log, config(kept_windows=4, snapshot_windows=3)


def test_every_window_is_drawn_again_from_the_log(eventful):
    log, run = eventful
    done = []
    report = replay_run(log, run, distances(N), progress=lambda *now: done.append(now))
    assert report.different == ()
    assert (report.windows, report.draws, report.reproduced) == (24, 24 * 64, True)
    assert done == [(index, 24) for index in range(1, 25)]
    assert len({facts.policy for facts, _ in log.facts()}) > 5


def test_any_window_is_drawn_again_alone(eventful):
    log, run = eventful
    for facts, digest in log.facts():
        assert redraw(log, run, distances(N), facts.index).digest == digest


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE log SET value = '0.5' WHERE kind = 'effective_size'", "the controls in the log give"),
        ("UPDATE windows SET digest = 'x' WHERE \"index\" = 3", "window 3: digest x"),
        ("DELETE FROM scores WHERE kind = 'bss' AND step = 5", "window"),
    ],
)
def test_changed_history_is_found(eventful, sql, message):
    log, run = eventful
    log._connection.execute(sql)
    try:
        report = replay_run(log, run, distances(N))
    except ValueError:
        return  # the history no longer makes sense at all
    assert not report.reproduced
    assert any(message in line for line in report.different)


def test_other_data_is_found(eventful):
    log, run = eventful
    assert not replay_run(log, run, distances(N)[::-1].copy()).reproduced
    with pytest.raises(CorruptLog, match="must have digest"):
        redraw(log, run, distances(N)[::-1].copy(), 0)


def test_empty_log_is_reproduced():
    assert replay_run(RunLog(), config(), distances(N)).reproduced


def adaptive(**changes):
    """A run that grows by .2 from .2 to .5."""
    growth = AdaptiveGrowth(**{"metric": "nn", "increment": 0.2, "patience": 2, **changes})
    return config(schedule="adaptive", start=0.2, end=0.5, growth=growth)


def test_adaptive_schedule_grows_when_the_metric_is_flat():
    cases = [([], 0.2), ([0.1, 0.2, 0.3], 0.2), ([0.1, 0.1], 0.2), ([0.1, 0.1, 0.1], 0.4), ([0.1] * 9, 0.5)]
    for reports, size in [*cases, ([0.1, float("nan"), 0.1005], 0.4)]:
        assert adaptive().curriculum.growth.effective_size(reports, start=0.2, end=0.5) == size
    falling = adaptive(metric="loss").curriculum.growth
    assert falling.effective_size([3.0, 2.0, 2.5, 2.5], start=0.2, end=0.5) == 0.4


def test_adaptive_schedule_follows_what_trainers_report_and_survives_a_restart(tmp_path):
    log = RunLog(tmp_path / "run.sqlite")
    run = adaptive()
    selection = Selection(distances(N), run, runlog=log)
    sizes = []
    for index in range(8):
        sizes.append(selection.window(index).effective_size)
        selection.record(Event(kind="metric", author="trainer", message="nn", value=0.1))
        selection.record(Event(kind="metric", author="trainer", message="loss", value=0.5))
        if index == 3:
            log.close()
            log = RunLog(tmp_path / "run.sqlite")
            selection = Selection(distances(N), run, runlog=log)
    assert sizes == [0.2, 0.2, 0.2, 0.4, 0.4, 0.5, 0.5, 0.5]
    scheduled = [(entry.author, entry.value) for entry in selection.log() if entry.kind == "schedule"]
    assert scheduled == [("adaptive", 0.4), ("adaptive", 0.5)]
    assert replay_run(log, run, distances(N)).reproduced
    with pytest.raises(ValueError, match="schedule is adaptive"):
        selection.window(8, effective_size=0.3)


def test_person_overrides_the_adaptive_schedule():
    selection = Selection(distances(N), adaptive())
    selection.control(Control(kind="effective_size", value=0.3, author="ann"))
    assert selection.window(0).effective_size == 0.3
    selection.control(Control(kind="release", author="ann"))
    assert selection.window(1).effective_size == 0.2


@pytest.mark.parametrize("changes", [{"increment": 0.0}, {"patience": 0}, {"min_gain": -1}])
def test_bad_adaptive_rule_is_refused(changes):
    with pytest.raises(ValueError, match="must be"):
        adaptive(**changes)
