import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from scoring import Selection, sampling_probabilities
from tests.scoring.configs import selection_config

N = 1000


@pytest.fixture
def selection():
    distance = np.random.default_rng(0).beta(3.4, 2.38, N).astype(np.float32)
    chosen = Selection(distance, selection_config(seed=1, global_batch=50, window_steps=4, start=0.3))
    chosen.window(0)
    chosen.report_scores(np.arange(100), np.arange(100), kind="loss", step=0, producer="a", sequence=0)
    return chosen


def law_of(selection):
    distance = selection.table.distances()
    return distance, sampling_probabilities(distance, selection.window(0).temperature)


def test_summary_is_what_the_law_says(selection):
    distance, law = law_of(selection)
    summary = selection.view("summary", top=5)
    assert summary["effective_sample_size"] == pytest.approx(1 / (law**2).sum())
    assert summary["entropy"] == pytest.approx(-(law * np.log(law)).sum())
    expected = np.argsort(-law, kind="stable")[:5]
    assert [row["sample_id"] for row in summary["top"]] == expected.tolist()
    assert summary["top"][0]["probability"] == pytest.approx(law.max())
    assert summary["top"][0]["distance"] == pytest.approx(float(distance.min()))
    histogram = np.bincount(selection.times_drawn())
    assert summary["times_drawn"]["histogram"] == histogram.tolist()
    assert summary["times_drawn"]["never"] == histogram[0]
    assert summary["times_drawn"]["mean"] == pytest.approx(0.2)
    assert summary["scores"]["loss"]["scored"] == 100
    assert summary["scores"]["loss"]["quantiles"]["0.5"] == 49.5
    json.dumps(summary, allow_nan=False)


def test_uniform_law_has_all_samples_effective():
    chosen = Selection(None, selection_config(seed=1, global_batch=5, policy="uniform_replacement", num_samples=70))
    summary = chosen.view("summary", top=3)
    assert summary["effective_sample_size"] == pytest.approx(70)
    assert summary["entropy"] == pytest.approx(np.log(70))
    assert [row["sample_id"] for row in summary["top"]] == [0, 1, 2]
    assert summary["law"]["temperature"] is None


def test_export_holds_every_sample(selection, tmp_path):
    distance, law = law_of(selection)
    assert selection.view("export", path=tmp_path / "table.parquet") == {"rows": N}
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column_names == ["sample_id", "probability", "distance", "times_drawn", "score_loss"]
    np.testing.assert_array_equal(table["sample_id"], np.arange(N))
    np.testing.assert_allclose(table["probability"], law, rtol=1e-9)
    np.testing.assert_array_equal(table["distance"], distance)
    np.testing.assert_array_equal(table["times_drawn"], selection.times_drawn())
    assert table["score_loss"].null_count == N - 100
    assert [file.name for file in tmp_path.iterdir()] == ["table.parquet"]


def test_bad_request_is_refused(selection):
    with pytest.raises(ValueError, match="top must be 1"):
        selection.view("summary", top=0)
