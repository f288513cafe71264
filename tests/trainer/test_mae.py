import pytest
import torch
from trainer_fakes import GOLDENS, tiny

from tests.bench.goldens import GoldenRandomness, golden_images, golden_mae
from trainer import StepRandomness, build_method, model_size
from trainer.masking import random_mask
from trainer.methods.mae import Mae, standardise
from trainer.models.vit import patchify, sincos_positions, unpatchify

GOLDEN = GOLDENS["mae"]


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_and_gradient_equal_the_official_ones(norm_pix):
    method = golden_mae(norm_pix=norm_pix)
    losses = method(golden_images(2, 32), GoldenRandomness())
    losses.total.backward()
    assert losses.total.item() == pytest.approx(GOLDEN[f"loss_norm_pix={norm_pix}"], abs=1e-6)
    assert losses.mask_BN.int().tolist() == GOLDEN["mask"]
    norm = torch.sqrt(sum(p.grad.square().sum() for p in method.parameters() if p.grad is not None)).item()
    assert norm == pytest.approx(GOLDEN[f"gradnorm_norm_pix={norm_pix}"], rel=1e-6)


def test_predictions_equal_the_official_ones_in_image_order():
    method = golden_mae(norm_pix=False)
    images = golden_images(2, 32)
    prediction = method.predict(images, random_mask(method.config, 2, GoldenRandomness(), like=images))
    assert prediction.sum().item() == pytest.approx(GOLDEN["pred_sum"], abs=1e-6)
    assert prediction[0, 0, :3].tolist() == pytest.approx(GOLDEN["pred[0,0,:3]"], abs=1e-6)


def test_positions_equal_the_official_ones_and_the_first_half_is_the_column():
    positions = sincos_positions(48, 4)[0]
    assert positions.sum().item() == pytest.approx(GOLDEN["pos_embed_sum"], abs=1e-4)
    assert positions[2, :4].tolist() == pytest.approx(GOLDEN["pos_embed[0,2,:4]"], abs=1e-7)
    assert not positions[0].any()
    grid = positions[1:].view(4, 4, 48)
    assert torch.equal(grid[0, :, :24], grid[3, :, :24])
    assert torch.equal(grid[:, 0, 24:], grid[:, 3, 24:])


def test_zero_predictions_cost_what_the_unbiased_variance_leaves():
    patches = torch.randn(4, 9, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert standardise(patches).square().mean().item() == pytest.approx(767 / 768, abs=1e-5)


def test_the_loss_ignores_visible_pixels_of_the_target():
    method = build_method("mae", tiny(norm_pix=False))
    images = torch.rand(2, 3, 16, 16)
    losses = method(images, StepRandomness(seed=0, step=0))
    assert torch.equal(losses.patch_loss_BN == 0, losses.mask_BN == 0)
    assert torch.allclose(losses.per_sample_B, (losses.patch_loss_BN * losses.mask_BN).sum(1) / losses.mask_BN.sum(1))
    assert torch.allclose(losses.total, losses.per_sample_B.mean())


def test_unpatchify_undoes_patchify_and_a_patch_is_row_column_channel():
    images = torch.arange(2 * 3 * 8 * 8).float().view(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert torch.equal(unpatchify(patches, 4), images)
    assert torch.equal(patches[0, 1].view(4, 4, 3)[2, 1], images[0, :, 2, 5])


@pytest.mark.parametrize(
    ("size", "millions"), [("vit_b", 111.91), ("vit_l", 329.54), ("vit_h", 657.07)], ids=["vit_b", "vit_l", "vit_h"]
)
def test_named_sizes_have_the_published_parameter_counts(size, millions):
    with torch.device("meta"):
        method = Mae(model_size(size))
    assert sum(p.numel() for p in method.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
