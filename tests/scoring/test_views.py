"""Views of a live selection: who is drawn, what is known of a sample, how the distances and the next draw lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scoring import Control, Event, RunLog, Selection, read_entries, sampling_probabilities
from scoring.views import TOP_BY
from tests.scoring.configs import selection_config

DISTANCE = np.random.default_rng(3).random(5000).astype(np.float32)


@pytest.fixture
def selection() -> Selection:
    made = Selection(DISTANCE, selection_config(seed=1, global_batch=64, window_steps=4, start=0.3))
    for index in range(3):
        made.window(index)
    return made


def test_the_most_probable_are_the_nearest(selection: Selection) -> None:
    listed = [sample["sample_id"] for sample in selection.view("top", by="probability", k=7)["samples"]]
    assert listed == np.argsort(DISTANCE, kind="stable")[:7].tolist()


def test_the_most_drawn_agree_with_the_counts_at_ties_the_lower_id(selection: Selection) -> None:
    times = selection.times_drawn()
    listed = [sample["sample_id"] for sample in selection.view("top", by="times_drawn", k=9)["samples"]]
    assert listed == np.lexsort((np.arange(len(times)), -times.astype(np.int64)))[:9].tolist()


def test_only_scored_samples_are_listed_by_score(selection: Selection) -> None:
    assert selection.view("top", by="score", k=5)["samples"] == []
    selection.report_scores([5, 9, 2], [0.5, 0.9, 0.5], kind="pass", step=1, producer="t", sequence=1)
    listed = [(sample["sample_id"], sample["score"]) for sample in selection.view("top", by="score", k=5)["samples"]]
    assert listed == [(9, pytest.approx(0.9)), (2, 0.5), (5, 0.5)]
    assert selection.view("scores")["kinds"]["pass"]["scored"] == 3


def test_the_facts_of_a_sample_are_those_of_the_law_in_force(selection: Selection) -> None:
    temperature = selection.state()["temperature"]
    (facts,) = selection.view("samples", ids=[4321])["samples"]
    assert facts["probability"] == pytest.approx(sampling_probabilities(DISTANCE, temperature)[4321], rel=1e-9)
    assert (facts["distance"], facts["score"]) == (pytest.approx(float(DISTANCE[4321])), None)


def test_the_sampled_mass_sums_to_one_and_follows_the_temperature(selection: Selection) -> None:
    before = selection.view("distribution", bins=16)
    assert before["count"] == np.histogram(DISTANCE, bins=before["edges"])[0].tolist()
    assert sum(before["sampled_mass"]) == pytest.approx(1.0)
    selection.control(Control(kind="effective_size", value=0.6, author="ann"))
    after = selection.view("distribution", bins=16)
    assert after["sampled_mass"][0] < before["sampled_mass"][0]
    assert after["effective_size"] == pytest.approx(0.6)


def test_a_run_without_distances_has_no_distribution() -> None:
    selection = Selection(None, selection_config(seed=1, global_batch=4, num_samples=40, policy="uniform"))
    assert selection.view("distribution")["edges"] == []
    assert selection.view("top", k=2)["samples"][0]["distance"] is None


@pytest.mark.parametrize(("by", "k"), [("distance", 3), ("probability", 0)])
def test_an_unknown_order_is_refused(selection: Selection, by: str, k: int) -> None:
    with pytest.raises(ValueError, match=f"by must be one of {', '.join(TOP_BY)}"):
        selection.view("top", by=by, k=k)


def test_a_sample_that_is_not_there_is_refused(selection: Selection) -> None:
    with pytest.raises(ValueError, match=r"sample ids must be in 0\.\.4999; got 5000"):
        selection.view("samples", ids=[1, 5000])


def test_the_log_is_read_by_bounds_and_kinds(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.sqlite")
    selection = Selection(DISTANCE, selection_config(seed=1, global_batch=64), runlog=log)
    for number in range(6):
        selection.record(Event(kind="bad_sample" if number % 2 else "kill", author="me", message=str(number)))
    sequences = [entry.sequence for entry in selection.log()]
    assert [entry.reason for entry in selection.log(2, before=sequences[4])] == ["2", "3"]
    assert [entry.reason for entry in selection.log(after=sequences[1], without=("bad_sample",))] == ["2", "4"]
    assert [entry.reason for entry in read_entries(log.path or "", limit=1, before=sequences[1])] == ["0"]
    selection.close()
