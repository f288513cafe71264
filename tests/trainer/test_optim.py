import pytest
import torch
from trainer_fakes import tiny, tiny_run

from trainer import TrainConfig, build_method
from trainer.optim import build_optimizers, learning_rate, parameter_groups


def test_the_rate_follows_the_official_cosine_at_batch_4096_over_800_epochs():
    config = TrainConfig(total_steps=800, global_batch=4096, warmup_steps=40)
    rates = [learning_rate(config, epoch) for epoch in (0, 20, 40, 420, 800)]
    assert rates == pytest.approx([0.0, 1.2e-3, 2.4e-3, 1.2e-3, 0.0])


def test_multistep_divides_by_ten_and_warms_up_from_its_own_rate():
    config = TrainConfig(
        total_steps=800,
        global_batch=2048,
        warmup_steps=10,
        lr_batch=512,
        base_lr=1e-4,
        schedule="multistep",
        warmup_lr=2e-6,
    )
    assert [learning_rate(config, e) for e in (0, 5, 10, 699, 700)] == pytest.approx([2e-6, 2.01e-4, 4e-4, 4e-4, 4e-5])


def test_the_rate_can_be_absolute():
    assert TrainConfig(total_steps=2, global_batch=2048, base_lr=5e-4, lr_batch=0).peak_lr == 5e-4


def test_vectors_and_biases_have_no_weight_decay_and_tokens_do():
    groups = parameter_groups(build_method("mae", tiny()), "model", tiny_run())
    decay = {name: group.get("weight_decay", 0.05) for group in groups for name in group["names"]}
    assert (
        decay["encoder.blocks.0.attn.qkv.weight"] == decay["encoder.cls_token"] == decay["decoder.mask_token"] == 0.05
    )
    assert decay["encoder.norm.weight"] == decay["decoder.pred.bias"] == 0.0
    assert not any("pos_embed" in name for name in decay)


def test_layer_decay_scales_each_layer():
    groups = parameter_groups(build_method("mae", tiny()), "model", tiny_run(layer_decay=0.5))
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["encoder.cls_token"] == scale["encoder.patch_embed.proj.bias"] == 0.5**3
    assert [scale[f"encoder.blocks.{k}.norm1.weight"] for k in range(2)] == [0.25, 0.5]
    assert scale["encoder.norm.weight"] == scale["decoder.pred.weight"] == 1.0


def test_adamw_leaves_the_update_out_on_the_device_when_the_norm_is_not_finite():
    method = build_method("mae", tiny())
    optimizer = build_optimizers(method, tiny_run())["model"]
    before = method.decoder.pred.weight.detach().clone()
    for flag in (1.0, 0.0):
        for parameter in method.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.found_inf = torch.tensor(flag)
        optimizer.step()
        assert torch.equal(method.decoder.pred.weight, before) == bool(flag)
