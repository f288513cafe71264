import math

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from trainer_fakes import tiny

from trainer import METHODS, ModelConfig, StepRandomness, build_method, model_size
from trainer.config import MTO_PRESETS, ConmimConfig, MtoConfig, SwinConfig
from trainer.mto import MtoObserver, entropy, similarity
from trainer.record.pictures import affinities

NOTHING = StepRandomness(seed=0, step=0)


def slow_heterogeneity(masked, visible):
    """Eq. 2 by loops, raw products."""
    total = 0.0
    for row in masked:
        weights = [math.exp(float(row @ column)) for column in visible]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    return total / len(masked)


def observe(config, layers, masked=3):
    observer = MtoObserver(config, lambda tokens: (tokens[:, :masked], tokens[:, masked:]))
    for layer in layers:
        observer(layer)
    return observer


def test_heterogeneity_equals_the_double_loop():
    tokens = torch.randn(2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    observer = observe(MtoConfig(similarity="raw"), [tokens])
    wanted = sum(slow_heterogeneity(x[:3].tolist() and x[:3], x[3:]) for x in tokens) / 2
    assert observer.heterogeneity[0].item() == pytest.approx(wanted, rel=1e-10)


def test_equal_tokens_have_the_largest_heterogeneity_and_distinct_ones_none():
    equal = torch.ones(1, 8, 4, dtype=torch.float64)
    assert observe(MtoConfig(), [equal]).heterogeneity[0].item() == pytest.approx(math.log(5))
    distinct = torch.eye(4, dtype=torch.float64).repeat(2, 1)[None] * 100
    assert observe(MtoConfig(similarity="raw"), [distinct], masked=4).heterogeneity[0].item() == pytest.approx(0)


def test_the_rank_loss_wants_a_fall_by_default_and_a_rise_as_printed():
    layers = [torch.ones(1, 8, 4) * 0, torch.randn(1, 8, 4) * 5]
    fall = observe(MtoConfig(similarity="raw"), layers)
    drop = fall.heterogeneity[0].item() - fall.heterogeneity[1].item()
    assert drop > 0
    assert fall.losses()["mto_rank"].item() == pytest.approx(math.log1p(math.exp(-drop)), rel=1e-5)
    printed = observe(MtoConfig(similarity="raw", rank_sign="paper"), layers)
    assert printed.losses()["mto_rank"].item() == pytest.approx(math.log1p(math.exp(drop)), rel=1e-5)


def test_entropy_loss_is_the_inverse_and_stays_finite_when_saturated():
    flat = observe(MtoConfig(), [torch.ones(1, 8, 4)])
    assert flat.losses()["mto_entropy"].item() == pytest.approx(1 / math.log(5), rel=1e-4)
    spiky = observe(MtoConfig(similarity="raw"), [torch.eye(4).repeat(2, 1)[None] * 1000], masked=4)
    assert spiky.losses()["mto_entropy"].item() == pytest.approx(1e3, rel=1e-2)


def test_sparsity_counts_visible_rows_over_all_tokens():
    tokens = torch.randn(2, 8, 4, dtype=torch.float64)
    rows = entropy(similarity(tokens[:, 3:], tokens, MtoConfig(similarity="raw")))
    mean = observe(MtoConfig(similarity="raw"), [tokens]).losses()["mto_spa"]
    total = observe(MtoConfig(similarity="raw", spa_reduction="sum"), [tokens]).losses()["mto_spa"]
    assert mean.item() == pytest.approx(rows.mean().item())
    assert total.item() == pytest.approx(rows.sum(1).mean().item())
    without = observe(MtoConfig(exclude_diagonal=True), [tokens]).losses()["mto_spa"]
    assert without.isfinite()
    assert without != observe(MtoConfig(), [tokens]).losses()["mto_spa"]


def test_visible_tokens_can_be_left_out_of_the_gradient():
    tokens = torch.randn(1, 8, 4, requires_grad=True)
    sum(observe(MtoConfig(detach_visible=True), [tokens, tokens * 2]).losses().values()).backward()
    assert tokens.grad[:, :3].abs().max() > 0
    assert tokens.grad[:, 3:].abs().max() == 0


def small(name: str, **fields) -> ModelConfig:
    shape = {"image_size": 64, "patch_size": 16, "masking": "random", "conmim": ConmimConfig(hidden=16, projection=8)}
    return tiny(**(shape | fields))


@pytest.mark.parametrize("preset", MTO_PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_the_losses_by_preset(name, preset):
    images = torch.rand(3, 3, 64, 64)
    torch.manual_seed(0)
    plain = build_method(name, small(name)).eval()
    added = build_method(name, small(name, mto=MTO_PRESETS[preset])).eval()
    added.load_state_dict(plain.state_dict())
    without, losses = plain(images, NOTHING), added(images, NOTHING)
    terms = [value for part, value in losses.parts.items() if part.startswith("mto_")]
    assert len(terms) == (6 if name == "bootmae" else 3)
    assert losses.parts["method"].item() == pytest.approx(without.total.item(), rel=1e-6)
    assert losses.total.item() == pytest.approx(without.total.item() + sum(t.item() for t in terms), rel=1e-5)
    layers = sum(part.startswith("heterogeneity_") for part in losses.parts)
    depth = {"simmim": 2, "conmim": 2, "bootmae": 4}.get(name, 1)
    assert layers == depth + (2 if name == "bootmae" else 1)
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in added.parameters())


def kept_bytes(method) -> int:
    """Bytes that the backward pass keeps, each storage once."""
    storages = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = method(torch.rand(1, 3, 224, 224), NOTHING)
    held = sum(storages.values())
    del losses
    return held


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_the_losses_keep_less_than_a_tenth_more_at_vit_b_width(name):
    plain = kept_bytes(build_method(name, model_size("vit_b", depth=2, decoder_depth=3)))
    added = kept_bytes(build_method(name, model_size("vit_b", depth=2, decoder_depth=3, mto=MtoConfig(enabled=True))))
    assert plain < added * 1.0001
    assert added < 1.1 * plain


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="mto weights must be 0 or more"):
        MtoConfig(weight_spa=-1)


def test_a_swin_takes_the_losses_stage_by_stage():
    stages = SwinConfig(depths=(2, 1), heads=(2, 2), window=4)
    shape = {"image_size": 64, "patch_size": 8, "width": 24, "heads": 2, "encoder": "swin", "swin": stages}
    plain, added = (
        build_method("simmim", ModelConfig(mask_ratio=0.6, mto=mto, **shape)).eval()
        for mto in (MtoConfig(), MtoConfig(enabled=True))
    )
    added.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64)
    without, losses = plain(images, NOTHING), added(images, NOTHING)
    assert losses.parts["method"].item() == pytest.approx(without.total.item(), rel=1e-6)
    heterogeneity = [losses.parts[f"heterogeneity_{layer:02d}"].item() for layer in range(4)]
    visible = 16  # one 32-pixel block of four is visible: 16 patches of 8 pixels, 4 tokens after the merge
    assert all(0 <= value <= math.log(visible) for value in heterogeneity[:3])
    assert 0 <= heterogeneity[3] <= math.log(visible // 4)
    steps = torch.tensor([heterogeneity[1] - heterogeneity[0], heterogeneity[2] - heterogeneity[1]])
    assert losses.parts["mto_rank"].item() == pytest.approx(torch.nn.functional.softplus(steps).sum().item(), rel=1e-5)
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in added.parameters())
    columns = affinities(added, images, added.draw_mask(2, NOTHING, like=images))
    assert columns["layer 0"].shape == (2, 8, 8)
    assert columns["layer 3"].shape == (2, 4, 4)
    assert columns["layer 3"][0][~np.isnan(columns["layer 3"][0])].sum() == pytest.approx(1, rel=1e-5)
