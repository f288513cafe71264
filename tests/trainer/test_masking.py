import numpy as np
import pytest
import torch
from scipy import stats
from trainer_fakes import tiny

from trainer import ModelConfig, StepRandomness
from trainer.masking import MASKINGS, block_rectangles, from_mask, random_mask, simmim_blocks, split_order, take

LIKE = torch.zeros(1)


@pytest.mark.parametrize("name", MASKINGS)
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.75])
def test_every_row_hides_the_same_number_and_the_lists_are_a_partition(name, ratio):
    config = ModelConfig(mask_ratio=ratio)
    mask = MASKINGS[name](config, 6, StepRandomness(seed=0, step=3), like=LIKE)
    both = torch.cat([mask.visible_BV, mask.masked_BM], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(196).expand(6, -1))
    assert torch.equal(mask.mask_BN.gather(1, mask.masked_BM), torch.ones(6, mask.masked_BM.shape[1]))
    wanted = {"simmim": 4 * -int(-49 * ratio // 1)}.get(name, 196 - int(196 * (1 - ratio)))
    assert mask.masked_BM.shape[1] == wanted


@pytest.mark.parametrize("name", MASKINGS)
def test_rows_depend_on_their_place_in_the_global_batch(name):
    config = ModelConfig()
    whole = MASKINGS[name](config, 6, StepRandomness(seed=0, step=0), like=LIKE).mask_BN
    part = MASKINGS[name](config, 2, StepRandomness(seed=0, step=0, first_row=4), like=LIKE).mask_BN
    assert torch.equal(whole[4:], part)
    assert not torch.equal(whole, MASKINGS[name](config, 6, StepRandomness(seed=0, step=1), like=LIKE).mask_BN)


def test_random_masking_hides_every_patch_equally_often():
    config = tiny()
    counts = sum(random_mask(config, 500, StepRandomness(seed=0, step=s), like=LIKE).mask_BN.sum(0) for s in range(8))
    expected = 8 * 500 * 0.75
    # A patch is hidden with variance r (1 - r); the fixed sum of a row leaves 15 degrees of freedom.
    statistic = (((counts - expected) ** 2) / (8 * 500 * 0.75 * 0.25)).sum().item() * 15 / 16
    assert stats.chi2.sf(statistic, 15) > 1e-4


def test_rectangles_are_clustered_and_never_too_many():
    generator = np.random.default_rng(0)
    neighbours = []
    for _ in range(50):
        mask = block_rectangles(14, 120, generator)
        assert mask.sum() <= 120
        neighbours.append((mask[:, 1:] & mask[:, :-1]).sum() / mask.sum())
    assert np.mean(neighbours) > 0.75  # 0.57 if the same number were spread at random


def test_taking_and_spreading_undo_each_other():
    mask = split_order(torch.tensor([[2, 0, 3, 1], [1, 3, 2, 0]]), 2)
    tokens = torch.arange(8.0).view(2, 4, 1)
    assert take(tokens, mask.visible_BV).squeeze(-1).tolist() == [[2, 0], [5, 7]]
    assert mask.spread(take(tokens, mask.masked_BM).squeeze(-1)).tolist() == [[0, 1, 0, 3], [4, 0, 6, 0]]
    assert torch.equal(from_mask(mask.mask_BN, 2).mask_BN, mask.mask_BN)


def test_blocks_are_32_pixels_and_smaller_on_small_images():
    assert simmim_blocks(ModelConfig()) == (7, 2)
    assert simmim_blocks(ModelConfig(image_size=192, patch_size=4)) == (6, 8)
    assert simmim_blocks(ModelConfig(image_size=32, patch_size=4)) == (4, 2)
    with pytest.raises(
        ValueError, match="simmim masking needs an image_size that is a multiple of its 32-pixel blocks"
    ):
        simmim_blocks(ModelConfig(image_size=80, patch_size=16))
