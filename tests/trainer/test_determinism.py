import pytest
import torch
from trainer_fakes import FakeStream, tiny, tiny_run

from trainer import METHODS, RunHooks, load_checkpoint, read_metrics, train
from trainer.config import ClmaeConfig, ConmimConfig, MtoConfig


def numbers(run_dir):
    volatile = {"time", "images_per_s", "data_wait", "mfu", "tflops_per_s"}
    return [{k: v for k, v in line.items() if k not in volatile} for line in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize("name", METHODS)
def test_a_second_and_a_resumed_run_equal_the_first_bit_for_bit(tmp_path, name):
    model = tiny(
        drop_path=0.2,
        conmim=ConmimConfig(hidden=32, projection=8),
        clmae=ClmaeConfig(masker_depth=1, masker_every=2),
        mto=MtoConfig(enabled=True),
    )
    config = tiny_run(method=name, model=model, total_steps=6, ema_decay=0.9, clip_norm=1.0, deterministic=True)
    try:
        for run in ("first", "second"):
            train(config, FakeStream(config), run_dir=tmp_path / run)
        stream = FakeStream(config)
        hooks = RunHooks(should_stop=lambda: stream.next_step == 3)
        train(config, stream, run_dir=tmp_path / "resumed", hooks=hooks)
        train(config, FakeStream(config), run_dir=tmp_path / "resumed")
    finally:
        torch.use_deterministic_algorithms(False)
    first = load_checkpoint(tmp_path / "first").tensors
    for run in ("second", "resumed"):
        assert numbers(tmp_path / run) == numbers(tmp_path / "first")
        other = load_checkpoint(tmp_path / run).tensors
        for file, group in first.items():
            assert all(torch.equal(value, other[file][key]) for key, value in group.items())


@pytest.mark.parametrize("name", METHODS)
def test_bf16_stays_near_float32(tmp_path, name):
    model = tiny(conmim=ConmimConfig(hidden=32, projection=8))
    for precision in ("float32", "bf16"):
        config = tiny_run(method=name, model=model, total_steps=3, precision=precision)
        train(config, FakeStream(config), run_dir=tmp_path / precision)
    whole, half = ([line["loss"] for line in numbers(tmp_path / p)] for p in ("float32", "bf16"))
    assert half == pytest.approx(whole, rel=0.03)
    assert half != whole
