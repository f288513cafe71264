import math
import re

import pytest
import torch
from trainer_fakes import GOLDENS, fill_state, golden_images, tiny

from trainer import ModelConfig, StepRandomness, build_method
from trainer.config import SwinConfig
from trainer.masking import from_mask, simmim_mask
from trainer.methods.simmim import Simmim
from trainer.official import from_official
from trainer.vit import patchify


def official_state(method: Simmim) -> dict[str, torch.Tensor]:
    """The official names and shapes of a SimMIM of this shape."""
    state = {}
    for name, value in method.state_dict().items():
        if name.startswith("head."):
            shape = (*value.shape, 1, 1) if value.ndim == 2 else value.shape
            state[name.replace("head.", "decoder.0.")] = torch.zeros(shape)
        else:
            moved = re.sub(r"layers\.(\d+)\.downsample", lambda f: f"layers.{int(f[1]) - 1}.downsample", name)
            state[moved.replace("trunk.", "")] = value
    return state


def golden(config: ModelConfig, blocks: int) -> Simmim:
    method = Simmim(config).double().eval()
    method.load_state_dict(from_official("simmim", fill_state(official_state(method))))
    return method


def golden_mask(scale: int):
    coarse = torch.tensor([[[1, 0], [1, 1]], [[0, 1], [1, 1]]]).float()
    fine = coarse.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)
    return from_mask(fine, 3 * scale**2)


@pytest.mark.parametrize(
    ("case", "config", "scale"),
    [
        (
            "simmim_vit",
            ModelConfig(image_size=64, patch_size=16, width=48, depth=2, heads=3, layer_scale=0.1, mask_ratio=0.6),
            2,
        ),
        (
            "simmim_swin",
            ModelConfig(
                image_size=64,
                patch_size=4,
                width=24,
                heads=2,
                encoder="swin",
                swin=SwinConfig(depths=(2, 2, 2, 2), heads=(2, 2, 4, 4), window=4),
                mask_ratio=0.6,
            ),
            8,
        ),
    ],
    ids=["vit", "swin"],
)
def test_loss_and_features_equal_the_official_ones(case, config, scale):
    method = golden(config, scale)
    images, mask = golden_images(2, 64), golden_mask(scale)
    tokens = method.encoder.encode(patchify(images, config.patch_size), mask.mask_BN)[:, 1:]
    assert tokens.sum().item() == pytest.approx(GOLDENS[case]["z_sum"], abs=1e-6)
    assert method.reconstruct(images, mask).total.item() == pytest.approx(GOLDENS[case]["loss"], abs=1e-6)


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
