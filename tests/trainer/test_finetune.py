from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from trainer_fakes import FakeStream, tiny, tiny_run

from trainer import train
from trainer.config import SwinConfig
from trainer.evaluate.augment import Augment, erase
from trainer.evaluate.data import LabelledShards, ahead
from trainer.evaluate.encoders import encoder_of_run, encoder_of_timm
from trainer.evaluate.finetune import accuracy, finetune, layer_groups, layer_numbers
from trainer.evaluate.recipes import FINETUNE, FinetuneConfig, cosine_rate

CPU = torch.device("cpu")
SMALL = {"batch": 20, "base_lr": 5e-3, "lr_batch": 0, "warmup_epochs": 1, "epochs": 8, "drop_path": 0.0}


def test_fine_tuning_learns_and_an_interrupted_one_continues_as_if_it_had_not_been(coloured, tiny_encoder, tmp_path):
    train_set, test = (LabelledShards(path) for path in coloured)
    config = FinetuneConfig(**SMALL, average_decay=0.5, clip_norm=5.0)
    common = {"device": CPU, "evaluate_epochs": 2}
    whole = finetune(tiny_encoder, train_set, test, config, **common)

    def stop(done, total):
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_encoder, train_set, test, config, directory=tmp_path / "fit", progress=stop, **common)
    resumed = finetune(tiny_encoder, train_set, test, config, directory=tmp_path / "fit", **common)
    assert whole["acc1"] > 0.8
    assert [line["epoch"] for line in whole["curve"]] == [2, 4, 6, 8]
    assert resumed == whole


@pytest.mark.parametrize("method", ["simmim", "swin"])
def test_other_encoders_become_timms_models_with_a_head(method, tmp_path):
    stages = SwinConfig(depths=(1, 1), heads=(2, 2), window=4)
    shape = {"image_size": 64, "patch_size": 8, "mask_ratio": 0.6}
    swin = {"encoder": "swin", "width": 24, "swin": stages} if method == "swin" else {}
    config = tiny_run(method="simmim", model=tiny(**shape, **swin), total_steps=2, warmup_steps=1)
    train(config, FakeStream(config), run_dir=tmp_path)
    pretrained = encoder_of_run(tmp_path)
    model = pretrained.build(num_classes=5, drop_path=0.1)
    images = torch.rand(2, 3, 64, 64)
    assert model(images).shape == (2, 5)
    plain = pretrained.build(num_classes=0).eval()
    tokens = pretrained.encoder.features(images)[:, 1:].mean(dim=1)
    features = plain.forward_features(images)
    features = features.flatten(1, 2) if method == "swin" else features[:, 1:]
    if method == "swin":
        assert torch.allclose(features.mean(dim=1), tokens, atol=1e-5)
    else:  # timm's has a fresh norm after the mean instead of the encoder's before it
        assert torch.allclose(pretrained.encoder.norm(features).mean(dim=1), tokens, atol=1e-4)
    assert sorted(set(layer_numbers(model).values())) == [0, 1, 2, 3]


def test_a_timm_checkpoint_from_a_file_gives_timms_features_also_at_another_size(tmp_path):
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7, img_size=64).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    pretrained = encoder_of_timm(name, tmp_path / "weights.safetensors", image_size=64)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(pretrained.encoder.features(images), theirs.forward_features(images), atol=1e-6)
        larger = pretrained.build(num_classes=3, image_size=96)
        assert larger(torch.rand(1, 3, 96, 96)).shape == (1, 3)
    save_file({"blocks.0.norm1.weight": torch.ones(192)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="names are missing or left over, first"):
        encoder_of_timm(name, tmp_path / "part.safetensors", image_size=64)
    (tmp_path / "weights.pth").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="must be a safetensors file, or a PyTorch file of tensors"):
        encoder_of_timm(name, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"got 'vit_tinny_patch16_224'\. Near: vit_tiny_patch16_224"):
        encoder_of_timm("vit_tinny_patch16_224", tmp_path / "weights.safetensors")


def test_rates_of_layers_and_steps_are_maes():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, global_pool="avg")
    layers = layer_numbers(model)
    assert layers["cls_token"] == layers["patch_embed.proj.weight"] == 0
    assert layers["blocks.0.mlp.fc1.weight"] == 1
    assert layers["blocks.11.norm1.weight"] == 12
    assert layers["head.weight"] == layers["fc_norm.weight"] == 13
    groups = layer_groups(model, FINETUNE["mae"])
    scales = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert scales["head.weight"] == (1.0, 0.05)
    assert scales["blocks.11.attn.qkv.weight"] == pytest.approx((0.65, 0.05))
    assert scales["patch_embed.proj.bias"] == pytest.approx((0.65**13, 0.0))
    assert scales["pos_embed"][1] == 0.0
    rate = partial(cosine_rate, FINETUNE["mae"], 1024, 10)
    assert (rate(0), rate(50)) == (0.0, pytest.approx(2e-3))
    assert rate(10 * 5 + 475) == pytest.approx(1e-6 + (2e-3 - 1e-6) / 2)
    assert cosine_rate(FINETUNE["mto_simmim"], 2048, 10, 100) == pytest.approx(5e-3)
    assert FINETUNE["mto_simmim"].layer_decay == 0.9


def test_augmentation_is_a_function_of_the_step_and_targets_sum_to_one():
    config = FinetuneConfig(batch=8)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(8) % 4
    augment = Augment(config, 4, mean=(0.5,) * 3, std=(0.25,) * 3)
    first, again, other = (augment(images.clone(), labels, step) for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.allclose(first[1].sum(dim=1), torch.ones(8), atol=1e-5)
    plain = Augment(FinetuneConfig(rand_augment="", erase=0, mixup=0, cutmix=0), 4, mean=(0.5,) * 3, std=(0.25,) * 3)
    same, targets = plain(images, labels, 0)
    assert torch.allclose((same * 0.25 + 0.5) * 255, images.float(), atol=1e-3)
    assert targets[0].tolist() == pytest.approx([0.925, 0.025, 0.025, 0.025])


def test_erasing_covers_between_a_fiftieth_and_a_third():
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        image = torch.full((3, 64, 64), 9.0)
        erase(image, generator)
        shares.append((image != 9).float().mean().item())
    assert 0.01 < min(shares) < max(shares) < 0.36


def test_batches_are_made_ahead_in_order_and_accuracy_counts_all(coloured, tiny_encoder):
    assert list(ahead(lambda step: step * 2, range(3, 7))) == [6, 8, 10, 12]
    assert list(ahead(lambda step: step, range(0))) == []
    test = LabelledShards(coloured[1])

    class Constant(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([[0.1, 0.9, 0.2]]).expand(len(images), -1)

    found = accuracy(Constant(), test, tiny_encoder, size=16, device=CPU)
    assert found == {"acc1": pytest.approx(1 / 3), "acc5": 1.0}


def test_an_epoch_draws_each_sample_once_and_the_next_in_another_order(coloured, monkeypatch):
    test, drawn = LabelledShards(coloured[1]), []
    monkeypatch.setattr(test, "load", lambda rows, *args, **draws: drawn.append(rows) or (None, None, rows))
    for step in range(8):
        test.train_batch(step, None, batch=7, seed=0)
    assert len(test) == 30
    assert len(set(np.concatenate(drawn[:4]).tolist())) == 28
    assert not np.array_equal(drawn[0], drawn[4])


def test_recipes_are_checked():
    with pytest.raises(ValueError, match=r"batch must be even; got 3\. Try 4"):
        FinetuneConfig(batch=3)
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\]"):
        FinetuneConfig(layer_decay=0)
    assert {"mae", "simmim", "bootmae", "conmim", "mto_mae", "mto_simmim", "mto_bootmae", "mto_conmim"} <= set(FINETUNE)
