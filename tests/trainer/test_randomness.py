import numpy as np
import pytest
import torch
from scipy import stats

from trainer import StepRandomness
from trainer.randomness import _GAMMA, _mix_int, _mix_tensor, _signed


def test_splitmix_finaliser_gives_the_published_first_output():
    assert _mix_int(_GAMMA) == 0xE220A8397B1DCDAF  # splitmix64 seeded with 0
    assert _mix_tensor(torch.tensor([_signed(_GAMMA)])).item() == _signed(0xE220A8397B1DCDAF)


def test_a_row_depends_on_its_place_in_the_global_batch_only():
    whole = StepRandomness(seed=3, step=5).uniform("mask", 8, 49)
    part = StepRandomness(seed=3, step=5, first_row=6).uniform("mask", 2, 49)
    assert torch.equal(whole[6:], part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_are_uniform_and_differ_by_seed_step_and_purpose(dtype):
    like = torch.zeros(1, dtype=dtype)
    draws = [
        StepRandomness(seed=seed, step=step).uniform(purpose, 100, 196, like=like)
        for seed, step, purpose in [(0, 0, "mask"), (1, 0, "mask"), (0, 1, "mask"), (0, 0, "other")]
    ]
    for draw in draws:
        assert draw.dtype == dtype
        assert draw.min() >= 0
        assert draw.max() < 1
        assert stats.kstest(draw.flatten().numpy(), "uniform").pvalue > 1e-4
    correlation = np.corrcoef([draw.flatten().numpy() for draw in draws])
    assert np.abs(correlation - np.eye(4)).max() < 0.03


def test_generators_and_keys_repeat():
    randomness = StepRandomness(seed=1, step=2, first_row=4)
    assert randomness.generator("a", 1).random() == StepRandomness(seed=1, step=2).generator("a", 5).random()
    assert {StepRandomness(seed=1, step=s).key("roll") % 4 for s in range(50)} == {0, 1, 2, 3}


def test_a_samples_numbers_do_not_depend_on_its_company():
    together = StepRandomness(seed=1, step=0, row_ids=np.array([5, 900_000_000_000, 7]))
    alone = StepRandomness(seed=1, step=0, row_ids=np.array([7]))
    assert torch.equal(together.uniform("mask", 3, 9)[2:], alone.uniform("mask", 1, 9))
    assert together.generator("mask", 2).random() == alone.generator("mask", 0).random()
    assert together.key("roll") == alone.key("roll")
