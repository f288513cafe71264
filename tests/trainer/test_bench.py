import json

import pytest
import torch

from trainer import METHODS
from trainer.bench.step import CPU_CASES, CUDA_CASES, CUDA_TARGETS, Case, _config, bench_trainer, run_cost
from trainer.config import PassConfig
from trainer.record.profiling import image_flops


def test_the_report_has_the_named_figures_and_is_json():
    seen = []
    cases = (Case(method="mae", size="tiny", batch=4), Case(method="clmae", size="tiny", batch=4))
    report = bench_trainer(device="cpu", cases=cases, turns=1, progress=lambda done, total: seen.append((done, total)))
    assert json.loads(json.dumps(report)) == report
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for row, case in zip(report["rows"], cases, strict=True):
        assert (row["method"], row["size"], row["batch"]) == (case.method, case.size, case.batch)
        figures = report["methods"][case.method][case.size]
        assert figures == {key: value for key, value in row.items() if key not in ("method", "size")}
        assert min(row[key] for key in ("images_per_s", "plain_images_per_s", "mfu", "ratio", "peak_memory_bytes")) > 0
    assert set(report["targets"]) == {"mae_over_plain", "masker_step_over_mae_step"}
    assert all(target.keys() == {"value", "limit", "met"} for target in report["targets"].values())


def test_every_gpu_target_is_measured_and_its_cases_fit_the_models():
    report = bench_trainer(device="cpu", cases=(Case(method="mae", size="tiny", batch=4),), turns=1)
    named = {name.replace("vit_b", "tiny") for name, _, _ in CUDA_TARGETS}
    assert named <= set(report["ratios"])
    for case in CUDA_CASES:
        assert image_flops(case.method, _config(case, torch.device("cuda")).model) > 1e9
    assert next(case.batch for case in CUDA_CASES if (case.method, case.size) == ("mae", "vit_b")) >= 1024


def test_the_cost_of_the_papers_run_is_its_budget_and_what_selecting_adds():
    settings = PassConfig(enabled=True)
    assert run_cost(settings, 0, 1) == pytest.approx(0.37)
    assert run_cost(settings, 0.8, 1) == pytest.approx(0.37 + 9 * 0.8 / 200)
    assert run_cost(settings, 0.8, 1.4) == pytest.approx(0.37 + (9 * 0.8 + 11.1 * 0.4) / 200)
    assert run_cost(settings, 0.8, 1.4) < 0.47


def test_every_method_is_measured_on_both_kinds_of_device():
    assert {case.method for case in CPU_CASES} == {case.method for case in CUDA_CASES} == set(METHODS)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        bench_trainer(device="cuda:0")
    with pytest.raises(ValueError, match="turns must be 1 or more"):
        bench_trainer(turns=0)
