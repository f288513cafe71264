import pytest
import torch
from safetensors.torch import save_file
from trainer_fakes import tiny

from trainer import StepRandomness, build_method
from trainer.record.official import from_official, load_official


def official_mae(method):
    return {
        name.removeprefix("encoder.").replace("decoder.mask_token", "mask_token").replace("decoder.", "decoder_"): value
        for name, value in method.state_dict().items()
    }


def test_an_official_checkpoint_loads_and_gives_the_same_loss(tmp_path):
    torch.manual_seed(0)
    method = build_method("mae", tiny())
    save_file(official_mae(method), tmp_path / "mae.safetensors")
    loaded = load_official("mae", tmp_path / "mae.safetensors", tiny())
    images, randomness = torch.rand(2, 3, 16, 16), StepRandomness(seed=0, step=0)
    assert torch.equal(loaded(images, randomness).total, method(images, randomness).total)


def test_a_checkpoint_of_another_size_is_refused_by_name(tmp_path):
    save_file(official_mae(build_method("mae", tiny())), tmp_path / "mae.safetensors")
    with pytest.raises(ValueError, match=r"differs in \d+, first decoder\.embed\.weight, .*Choose the size"):
        load_official("mae", tmp_path / "mae.safetensors", tiny(width=64))
    with pytest.raises(ValueError, match=r"got 'bootmea'\. Did you mean 'bootmae'\?"):
        from_official("bootmea", {})
