import json

import pytest
import torch
from trainer_fakes import FakeStream, tiny, tiny_run

from trainer import METHODS, model_size, read_metrics, train
from trainer.config import SwinConfig
from trainer.record.profiling import image_flops, peak_flops, utilisation


def test_mae_base_costs_58_gflop_an_image():
    assert image_flops("mae", model_size("vit_b")) == pytest.approx(58e9, rel=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_counted(name):
    assert image_flops(name, tiny()) > 1e6


def test_a_swin_can_be_counted():
    swin = SwinConfig(depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4)
    model = model_size("tiny", image_size=64, patch_size=4, width=16, heads=1, encoder="swin", swin=swin)
    assert image_flops("simmim", model) > 1e6


def test_a_step_with_the_masker_costs_about_three_and_a_half_mae_steps():
    model = model_size("vit_b")
    ratio = image_flops("clmae", model) / image_flops("mae", model)
    assert 3.0 < ratio < 3.8


def test_utilisation_is_null_where_the_peak_is_not_known(tmp_path):
    assert peak_flops(torch.device("cpu")) is None
    config = tiny_run(total_steps=2, warmup_steps=0)
    assert utilisation(1000, config, torch.device("cpu"), 1)["tflops_per_s"] == pytest.approx(
        image_flops("mae", config.model) / 1e9
    )
    train(config, FakeStream(config), run_dir=tmp_path)
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert line["mfu"] is None
    assert {"images_per_s", "data_wait", "version", "tflops_per_s", "lr"} <= line.keys()


def test_a_trace_of_the_asked_steps_is_written(tmp_path):
    config = tiny_run(total_steps=14, profile_steps=2)
    train(config, FakeStream(config), run_dir=tmp_path)
    assert json.loads((tmp_path / "trace-rank-0.json").read_text())["traceEvents"]
