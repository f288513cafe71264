import pytest
import torch
from trainer_fakes import GOLDENS, FakeStream, tiny, tiny_run

from tests.bench.goldens import GoldenRandomness, golden_bootmae, golden_images
from trainer import ModelConfig, Progress, StepRandomness, build_method
from trainer.loop import build_state
from trainer.masking import random_mask, split_order
from trainer.methods.bootmae import bootmae_momentum, feature_distance, neighbour_weight, standardise_channels
from trainer.step import train_step

GOLDEN = GOLDENS["bootmae"]


def test_both_losses_equal_the_official_ones():
    method, images = golden_bootmae(), golden_images(2, 64)
    losses = method(images, GoldenRandomness())
    assert losses.mask_BN[0].int().view(4, 4).tolist() == GOLDEN["mask0"]
    assert losses.parts["pixel"].item() == pytest.approx(GOLDEN["Rloss"], abs=1e-6)
    assert losses.parts["feature"].item() == pytest.approx(GOLDEN["Ploss"], abs=1e-6)
    assert losses.total.item() == pytest.approx(GOLDEN["Rloss"] + GOLDEN["Ploss"], abs=2e-6)


def test_predictions_of_both_decoders_equal_the_official_ones():
    method, images = golden_bootmae(), golden_images(2, 64)
    mask = random_mask(method.config, 2, GoldenRandomness(), like=images)
    order = torch.cat([mask.visible_BV, mask.masked_BM], 1)
    assert order[0].tolist() == GOLDEN["idx0"]
    assert method.predict(images, mask).sum().item() == pytest.approx(GOLDEN["pix_sum"], abs=1e-5)
    patches = torch.nn.functional.unfold(images, 16, stride=16).mT.unflatten(2, (3, 256)).mT.flatten(2)
    latent, _, deep = method._encode(patches, mask)
    features = method.feature_decoder(latent, deep, mask)
    assert features.sum().item() == pytest.approx(GOLDEN["feat_sum"], abs=1e-5)


def test_the_feature_loss_is_blind_to_scale_and_offset():
    target = torch.randn(2, 5, 16, dtype=torch.float64)
    assert feature_distance(3 * target + 2, target).abs().max() < 1e-5
    assert feature_distance(-target, target).min() > 1


def test_weights_are_zero_on_visible_and_one_to_two_on_masked_patches():
    mask = random_mask(ModelConfig(), 4, StepRandomness(seed=0, step=0), like=torch.zeros(1))
    weight, masked = neighbour_weight(mask, 14), mask.mask_BN == 1
    assert (weight[~masked] == 0).all()
    assert weight[masked].min() >= 1 + 1 / 9 - 1e-6
    assert weight[masked].max() <= 2
    alone = split_order(torch.tensor([[0, 1, 2, 3, 5, 6, 7, 8, 4]]), 8)
    assert neighbour_weight(alone, 3)[0, 4].item() == pytest.approx(1 + 1 / 9)


def test_channels_are_standardised_by_themselves():
    patches = torch.rand(2, 3, 48, dtype=torch.float64) * 5
    values = standardise_channels(patches).view(2, 3, 16, 3)
    assert values.mean(2).abs().max() < 1e-12
    assert values.var(2, unbiased=False).sub(1).abs().max() < 1e-4


def test_the_teachers_momentum_follows_the_published_table():
    table = {0: 0.999, 50: 0.99945, 100: 0.9999, 250: 0.999945, 400: 0.99999, 700: 0.99999}
    for epoch, wanted in table.items():
        progress = Progress(step=epoch, total_steps=801, epoch_steps=1)
        assert bootmae_momentum(progress, dynamic=True) == pytest.approx(wanted, abs=1e-9)
    assert bootmae_momentum(Progress(step=300, total_steps=801, epoch_steps=1), dynamic=False) == 0.9999


def test_the_feature_weight_ramps_over_a_quarter_of_the_epochs():
    method = build_method("bootmae", tiny())
    for epoch, wanted in ((0, 4 / 801), (100, 404 / 801), (200, 1.0), (800, 1.0)):
        method.begin_step(Progress(step=epoch, total_steps=801, epoch_steps=1))
        assert method.feature_weight == pytest.approx(wanted)


def test_the_teacher_follows_the_encoder_and_gets_no_gradient():
    config = tiny_run(method="bootmae")
    state, stream = build_state(config), FakeStream(config)
    before = state.method.teacher.blocks[0].attn.qkv.weight.clone()
    start = state.method.encoder.blocks[0].attn.qkv.weight.detach().clone()
    for step in range(3):
        train_step(state, stream.batch(step).images)
    teacher, student = state.method.teacher.blocks[0].attn.qkv.weight, state.method.encoder.blocks[0].attn.qkv.weight
    assert torch.equal(before, start)
    assert 0 < (teacher - before).norm() < 0.01 * (student - before).norm()
    assert all(p.grad is None for p in state.method.teacher.parameters())


def test_block_masks_hide_exactly_the_wanted_number():
    method = build_method("bootmae", ModelConfig(width=48, heads=3, depth=1, decoder_width=16, decoder_heads=2))
    masks = method.draw_mask(8, StepRandomness(seed=0, step=0), like=torch.zeros(1)).mask_BN
    assert masks.sum(1).tolist() == [147] * 8
