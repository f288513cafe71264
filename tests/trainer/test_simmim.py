import math

import pytest
import torch
from trainer_fakes import GOLDENS, tiny

from tests.bench.goldens import golden_images, golden_mask, golden_simmim
from trainer import ModelConfig, StepRandomness, build_method
from trainer.masking import simmim_mask
from trainer.models.vit import patchify


@pytest.mark.parametrize(("swin", "scale"), [(False, 2), (True, 8)], ids=["vit", "swin"])
def test_loss_and_features_equal_the_official_ones(swin, scale):
    case = GOLDENS["simmim_swin" if swin else "simmim_vit"]
    method = golden_simmim(swin=swin)
    images, mask = golden_images(2, 64), golden_mask(scale)
    tokens = method.encoder.encode(patchify(images, method.config.patch_size), mask.mask_BN)[:, 1:]
    assert tokens.sum().item() == pytest.approx(case["z_sum"], abs=1e-6)
    assert method.reconstruct(images, mask).total.item() == pytest.approx(case["loss"], abs=1e-6)


def test_every_mask_block_is_whole_and_the_count_is_exact():
    config = ModelConfig(mask_ratio=0.6)
    mask_BN = simmim_mask(config, 32, StepRandomness(seed=0, step=0), like=torch.zeros(1)).mask_BN
    assert mask_BN.sum(1).tolist() == [math.ceil(49 * 0.6) * 4] * 32
    squares = mask_BN.view(32, 7, 2, 7, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(squares.amin(3), squares.amax(3))


def test_a_constant_offset_costs_its_size_and_visible_predictions_cost_nothing():
    method = build_method("simmim", tiny(image_size=64, patch_size=16, mask_ratio=0.6)).eval()
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.constant_(method.head.bias, 0.25)
    losses = method(torch.zeros(2, 3, 64, 64), StepRandomness(seed=0, step=0))
    assert losses.total.item() == pytest.approx(0.25, rel=1e-5)
    assert torch.equal(losses.patch_loss_BN > 0, losses.mask_BN == 1)


def test_hidden_pixels_do_not_reach_the_encoder():
    method = build_method("simmim", tiny(image_size=64, patch_size=16, mask_ratio=0.6)).eval()
    images = torch.rand(1, 3, 64, 64)
    mask_BN = simmim_mask(method.config, 1, StepRandomness(seed=0, step=0), like=images).mask_BN
    patches = patchify(images, 16)
    changed = torch.where(mask_BN[:, :, None] > 0, patches + 1, patches)
    assert torch.equal(method.encoder.encode(patches, mask_BN), method.encoder.encode(changed, mask_BN))


def test_the_initial_weights_are_cut_at_one_standard_deviation():
    method = build_method("simmim", tiny())
    for weight in (method.head.weight, method.encoder.mask_token, method.encoder.blocks[0].attn.qkv.weight):
        assert weight.abs().max() <= 0.02
        assert weight.std() > 0.008


def test_a_swin_needs_masks_of_whole_squares():
    config = ModelConfig(image_size=32, patch_size=4, width=24, heads=2, encoder="swin")
    with pytest.raises(ValueError, match=r"mask blocks must be a multiple of the Swin stride \(32 pixels\)"):
        build_method("simmim", config)
    with pytest.raises(ValueError, match="a swin encoder needs masks of whole squares"):
        build_method(
            "simmim", ModelConfig(image_size=192, patch_size=4, width=24, heads=2, encoder="swin", masking="random")
        )
