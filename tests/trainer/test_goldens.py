import json

from trainer_fakes import GOLDENS

from tests.bench import goldens
from tests.bench.goldens import OFFICIAL, TOLERANCE, golden_errors
from trainer.methods import METHODS


def test_every_method_is_as_far_from_the_official_numbers_as_float32_positions():
    rows = golden_errors()
    assert {row["method"].split()[0] for row in rows} == set(METHODS) - {"mean_colour"}
    assert json.loads(json.dumps(rows)) == rows
    assert max(row["error"] for row in rows) < TOLERANCE


def test_a_change_of_the_weights_shows(monkeypatch):
    exact = goldens.fill
    monkeypatch.setattr(goldens, "fill", lambda name, shape: exact(name, shape) * (1 + 1e-4))
    assert all(row["error"] > TOLERANCE for row in golden_errors() if row["what"] in ("loss", "recon"))


def test_the_numbers_are_those_of_the_golden_file():
    in_file = {value for case in GOLDENS.values() for value in case.values() if isinstance(value, float)}
    assert {value for case in OFFICIAL.values() for value in case.values()} <= in_file
