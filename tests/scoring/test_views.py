"""Views of a live selection: the summary, the most drawn samples, facts of samples, the distribution, the export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
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


def test_the_facts_of_a_sample_are_those_of_the_weights_in_force(selection: Selection) -> None:
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


@pytest.fixture
def scored() -> Selection:
    """A selection with one window drawn, of which 100 samples have a score."""
    made = Selection(DISTANCE, selection_config(seed=1, global_batch=250, window_steps=4, start=0.3))
    made.window(0)
    made.report_scores(np.arange(100), np.arange(100), kind="loss", step=0, producer="a", sequence=0)
    return made


def test_the_summary_agrees_with_the_probabilities(scored: Selection) -> None:
    probability = sampling_probabilities(DISTANCE, scored.window(0).temperature)
    summary = scored.view("summary", top=5)
    assert summary["effective_sample_size"] == pytest.approx(1 / (probability**2).sum())
    assert summary["entropy"] == pytest.approx(-(probability * np.log(probability)).sum())
    expected = np.argsort(-probability, kind="stable")[:5]
    assert [row["sample_id"] for row in summary["top"]] == expected.tolist()
    assert summary["top"][0]["probability"] == pytest.approx(probability.max())
    assert summary["top"][0]["distance"] == pytest.approx(float(DISTANCE.min()))
    histogram = np.bincount(scored.times_drawn())
    assert summary["times_drawn"]["histogram"] == histogram.tolist()
    assert summary["times_drawn"]["never"] == histogram[0]
    assert summary["times_drawn"]["mean"] == pytest.approx(0.2)
    assert summary["scores"]["loss"]["scored"] == 100
    assert summary["scores"]["loss"]["quantiles"]["0.5"] == 49.5
    json.dumps(summary, allow_nan=False)
    with pytest.raises(ValueError, match="top must be 1"):
        scored.view("summary", top=0)


def test_under_uniform_draws_all_samples_are_effective() -> None:
    chosen = Selection(None, selection_config(seed=1, global_batch=5, policy="uniform_replacement", num_samples=70))
    summary = chosen.view("summary", top=3)
    assert summary["effective_sample_size"] == pytest.approx(70)
    assert summary["entropy"] == pytest.approx(np.log(70))
    assert [row["sample_id"] for row in summary["top"]] == [0, 1, 2]
    assert summary["in_force"]["temperature"] is None


def test_the_export_holds_every_sample(scored: Selection, tmp_path: Path) -> None:
    assert scored.view("export", path=tmp_path / "table.parquet") == {"rows": len(DISTANCE)}
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column_names == ["sample_id", "probability", "distance", "times_drawn", "score_loss"]
    np.testing.assert_array_equal(table["sample_id"], np.arange(len(DISTANCE)))
    probability = sampling_probabilities(DISTANCE, scored.window(0).temperature)
    np.testing.assert_allclose(table["probability"], probability, rtol=1e-9)
    np.testing.assert_array_equal(table["distance"], DISTANCE)
    np.testing.assert_array_equal(table["times_drawn"], scored.times_drawn())
    assert table["score_loss"].null_count == len(DISTANCE) - 100
    assert [file.name for file in tmp_path.iterdir()] == ["table.parquet"]
