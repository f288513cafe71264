"""Changes that come while a window is being drawn."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scoring import Control, Event, RunLog, Selection, VersionConflict, replay_run
from tests.scoring.configs import distances, selection_config, set_size

N = 300
GATE = threading.Event()
REACHED = threading.Event()
FAIL = threading.Event()


def gated(inputs):
    """A user's policy that takes its time, and may fail."""
    REACHED.set()
    GATE.wait(120)
    if FAIL.is_set():
        raise ValueError("this policy fails now")
    return np.ones(inputs.num_rows)


NAME = f"prototypical*{__name__}:gated"


def config():
    return selection_config(
        seed=1, global_batch=8, window_steps=2, start=0.3, policy=NAME, user_policies=(f"{__name__}:gated",)
    )


@pytest.fixture
def selection(tmp_path):
    GATE.set()
    FAIL.clear()
    chosen = Selection(distances(N), config(), runlog=RunLog(tmp_path / "run.sqlite"))
    chosen.window(0, effective_size=0.2)
    yield chosen
    GATE.set()
    FAIL.clear()
    chosen.close()


@pytest.fixture
def drawing(selection):
    """Window 1 of the selection, on its way."""
    GATE.clear()
    REACHED.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(selection.window, 1, effective_size=0.25)
        assert REACHED.wait(120)
        yield waiting
        GATE.set()


def fail(drawing):
    """Let the draw go on and fail."""
    FAIL.set()
    GATE.set()
    with pytest.raises(ValueError, match="fails now"):
        drawing.result(120)


def test_change_during_a_draw_takes_effect_in_the_window_after_it(selection, drawing):
    reply = selection.control(set_size(0.5))
    assert (reply.window, reply.step, reply.version) == (2, 4, 1)
    GATE.set()
    first = drawing.result(120)
    scheduled = {entry.window: entry for entry in selection.log() if entry.kind == "schedule"}
    assert (scheduled[1].value, scheduled[1].temperature, scheduled[1].in_force) == (0.25, first.temperature, True)
    second = selection.window(2, effective_size=0.3)
    assert second.temperature == reply.temperature > first.temperature


def test_nothing_else_waits_for_a_draw(selection, drawing):
    assert selection.window(0).index == 0
    assert selection.report_scores([1], [0.5], kind="loss", step=0, producer="a", sequence=0).accepted == 1
    selection.record(Event(kind="scale", author="ann", value=2))
    assert selection.state()["next_window"] == 1
    assert selection.log()[-1].window == 2
    assert not drawing.done()


def test_two_changes_during_a_draw_keep_their_order_and_versions(selection, drawing):
    assert selection.control(set_size(0.4)).version == 1
    with pytest.raises(VersionConflict):
        selection.control(set_size(0.45, author="bob", expected_version=0))
    assert selection.control(set_size(0.5, author="bob", expected_version=1)).window == 2
    assert selection.state()["control_version"] == 2
    GATE.set()
    drawing.result(120)
    assert selection.state()["scheduled_effective_size"] == 0.25
    assert selection.state()["manual_kind"] == "effective_size"


def test_failed_draw_leaves_a_change_in_the_window_that_its_reply_named(selection, drawing):
    reply = selection.control(set_size(0.5))
    fail(drawing)
    assert selection.control(set_size(0.55)).window == 2
    with pytest.raises(ValueError, match="a change of the table must follow a drawn window"):
        selection.control(Control(kind="round", value="bss", author="trainer"))
    FAIL.clear()
    again = selection.window(1, effective_size=0.25)
    assert again.temperature < reply.temperature
    assert selection.window(2, effective_size=0.3).temperature > reply.temperature
    GATE.set()
    assert replay_run(selection._log, config(), selection.table.distance[: selection.num_samples]).reproduced


def test_change_that_waits_for_its_window_survives_a_restart(selection, drawing, tmp_path):
    selection.control(set_size(0.5))
    fail(drawing)
    FAIL.clear()
    selection.close()
    recovered = Selection(distances(N), config(), runlog=RunLog(tmp_path / "run.sqlite"))
    assert recovered.state()["manual"]
    narrow, broad = recovered.window(1, effective_size=0.25), recovered.window(2, effective_size=0.3)
    assert narrow.temperature < broad.temperature
    recovered.close()
