import json

import pytest

from trainer import METHODS
from trainer.bench import CPU_CASES, CUDA_CASES, Case, bench_trainer


def test_the_report_has_the_named_figures_and_is_json():
    seen = []
    cases = (Case(method="mae", size="tiny", batch=4), Case(method="clmae", size="tiny", batch=4))
    report = bench_trainer(device="cpu", cases=cases, turns=1, progress=lambda done, total: seen.append((done, total)))
    assert json.loads(json.dumps(report)) == report
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for row, case in zip(report["rows"], cases, strict=True):
        assert (row["method"], row["size"], row["batch"]) == (case.method, case.size, case.batch)
        assert min(row[key] for key in ("images_per_s", "plain_images_per_s", "mfu", "ratio", "peak_memory_bytes")) > 0
    assert set(report["targets"]) == {"mae_over_plain", "masker_step_over_mae_step"}
    assert all(target.keys() == {"value", "limit", "met"} for target in report["targets"].values())


def test_every_method_is_measured_on_both_kinds_of_device():
    assert {case.method for case in CPU_CASES} == {case.method for case in CUDA_CASES} == set(METHODS)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        bench_trainer(device="cuda:0")
    with pytest.raises(ValueError, match="turns must be 1 or more"):
        bench_trainer(turns=0)
