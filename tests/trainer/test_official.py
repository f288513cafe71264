import argparse
import re

import pytest
import torch
from safetensors.torch import save_file
from trainer_fakes import tiny

from trainer import build_method
from trainer.config import ConmimConfig
from trainer.evaluate.encoders import encoder_of_official
from trainer.record.official import load_official, read_weights

SHAPE = {"image_size": 16, "patch_size": 4, "width": 32, "depth": 2, "heads": 2}


def official_mae(method):
    return {
        name.removeprefix("encoder.").replace("decoder.mask_token", "mask_token").replace("decoder.", "decoder_"): value
        for name, value in method.state_dict().items()
    }


@pytest.mark.parametrize("form", ["published", "encoder only", "safetensors"])
def test_an_official_checkpoint_gives_the_features_of_its_encoder(form, tmp_path):
    torch.manual_seed(0)
    method, path = build_method("mae", tiny()), tmp_path / f"mae.{'safetensors' if form == 'safetensors' else 'pth'}"
    state = official_mae(method)
    if form == "encoder only":
        state = {name: value for name, value in state.items() if not re.match("decoder_|mask_token", name)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "args": argparse.Namespace(epochs=800), "epoch": 799}, path)
    _, encoder = load_official("mae", path, **SHAPE)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(encoder.features(images), method.encoder.eval().features(images))


def test_an_official_conmim_has_layer_scale_and_becomes_timms_model(tmp_path):
    method = build_method("conmim", tiny(layer_scale=0.1, conmim=ConmimConfig(hidden=16, projection=8)))
    state = {f"lm_head.{n}": torch.ones(1) for n in ("weight", "bias")}
    state |= {n.removeprefix("encoder."): v + 0.1 for n, v in method.state_dict().items() if n.startswith("encoder.")}
    torch.save({"model": state}, tmp_path / "conmim.pth")
    config, encoder = load_official("conmim", tmp_path / "conmim.pth", **SHAPE)
    assert config.layer_scale > 0
    assert torch.equal(encoder.blocks[1].gamma_1, method.encoder.blocks[1].gamma_1 + 0.1)


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path):
    save_file(official_mae(build_method("mae", tiny())), tmp_path / "mae.safetensors")
    with pytest.raises(ValueError, match=r"a vit_s encoder; .* differs in \d+, first blocks\.0\..*Choose the method"):
        encoder_of_official("mae", tmp_path / "mae.safetensors", size="vit_s")
    with pytest.raises(ValueError, match=r"an official bootmae checkpoint must have the names"):
        load_official("bootmae", tmp_path / "mae.safetensors", **SHAPE)
    with pytest.raises(ValueError, match=r"got 'bootmea'\. Did you mean 'bootmae'\?"):
        load_official("bootmea", tmp_path / "mae.safetensors")


def test_what_is_more_than_tensors_is_not_read(tmp_path):
    torch.save({"model": {"weight": re.compile("x")}}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"or a PyTorch file of tensors; .* cannot be read as one"):
        read_weights(tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"must be a state dict, .* holds epoch"):
        read_weights(tmp_path / "none.pth")
