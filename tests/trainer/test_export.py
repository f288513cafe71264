import json

import pytest
import torch
from safetensors.torch import load_file
from trainer_fakes import FakeStream, tiny, tiny_run

from trainer import METHODS, build_method, train
from trainer.config import ConmimConfig, SwinConfig
from trainer.record.export import TIMM_CLASSES, export_timm, load_method, timm_arguments, timm_state

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def timm_model(method):
    kind, arguments = timm_arguments(method.encoder, method.config)
    model = TIMM_CLASSES[kind](**arguments).double().eval()
    model.load_state_dict(timm_state(method.encoder))
    return model


def perturbed(name, **fields):
    """A method whose vectors and tables are not at their initial zeros and ones."""
    method = (
        build_method(name, tiny(conmim=ConmimConfig(hidden=16, projection=8), layer_scale=0.1, **fields))
        .double()
        .eval()
    )
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return method


@pytest.mark.parametrize("name", METHODS)
def test_timms_own_model_gives_the_same_features(name):
    method = perturbed(name)
    features = timm_model(method).forward_features(IMAGES.double())
    assert torch.allclose(features, method.encoder.features(IMAGES.double()), atol=1e-7)


def test_a_swin_gives_the_same_features_as_timms():
    method = perturbed(
        "simmim",
        image_size=64,
        patch_size=4,
        width=16,
        encoder="swin",
        swin=SwinConfig(depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
    )
    images = torch.rand(1, 3, 64, 64).double()
    features = timm_model(method).forward_features(images).flatten(1, 2)
    assert torch.allclose(features, method.encoder.features(images)[:, 1:], atol=1e-7)


def test_an_exported_run_loads_into_timm_from_its_two_files(tmp_path):
    config = tiny_run(ema_decay=0.5)
    train(config, FakeStream(config), run_dir=tmp_path / "run")
    for weights in ("encoder", "average"):
        path = export_timm(tmp_path / "run", tmp_path / weights, weights=weights)
        described = json.loads(path.with_name("encoder.json").read_text())
        model = TIMM_CLASSES[described["class"]](**described["arguments"]).eval()
        model.load_state_dict(load_file(path))
        _, method = load_method(tmp_path / "run", averaged=weights == "average")
        assert torch.allclose(model.forward_features(IMAGES), method.encoder.features(IMAGES), atol=1e-5)


def test_a_teacher_is_exported_where_there_is_one(tmp_path):
    config = tiny_run(method="bootmae", total_steps=3, warmup_steps=0)
    train(config, FakeStream(config), run_dir=tmp_path / "run")
    student, teacher = (
        load_file(export_timm(tmp_path / "run", tmp_path / weights, weights=weights))
        for weights in ("encoder", "teacher")
    )
    assert student.keys() == teacher.keys()
    assert not torch.equal(student["norm.bias"], teacher["norm.bias"])


def test_what_is_not_there_is_said(tmp_path):
    config = tiny_run(total_steps=3)
    train(config, FakeStream(config), run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="a teacher needs a run of bootmae or conmim; this one is of mae"):
        export_timm(tmp_path / "run", tmp_path / "out", weights="teacher")
    with pytest.raises(ValueError, match="averaged weights need a run with ema_decay above 0"):
        export_timm(tmp_path / "run", tmp_path / "out", weights="average")
