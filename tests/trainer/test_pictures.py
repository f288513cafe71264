import numpy as np
import pytest
import torch
from matplotlib.image import imread
from trainer_fakes import FakeStream, tiny, tiny_run

from trainer import METHODS, build_method, train
from trainer.config import ConmimConfig, MtoConfig, PassConfig
from trainer.masking import random_mask
from trainer.methods.bootmae import standardise_channels
from trainer.methods.mae import standardise
from trainer.models.vit import patchify
from trainer.randomness import StepRandomness
from trainer.record.pictures import Pictures, draw, heterogeneity_plot, reconstructions

SHAPE = {"image_size": 64, "patch_size": 16, "conmim": ConmimConfig(hidden=16, projection=8)}
EXPECTED = {
    "mae": {"reconstructions"},
    "simmim": {"reconstructions"},
    "bootmae": {"reconstructions"},
    "clmae": {"reconstructions", "masks"},
    "conmim": set(),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_pictures(tmp_path, name):
    config = tiny_run(method=name, model=tiny(**SHAPE))
    method = build_method(name, config.model)
    Pictures(config, FakeStream(config).images(range(2)).numpy(), tmp_path / "report")(0, method)
    written = {path.stem.removeprefix("step-00000000-") for path in (tmp_path / "report").iterdir()}
    assert written == EXPECTED[name]
    assert all(imread(path).std() > 0.01 for path in (tmp_path / "report").iterdir())
    assert method.training


@pytest.mark.parametrize("name", ["mae", "bootmae", "simmim"])
def test_visible_patches_of_a_reconstruction_are_the_image_and_perfect_predictions_complete_it(name, monkeypatch):
    config = tiny_run(method=name, model=tiny(**SHAPE))
    method = build_method(name, config.model).double().eval()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    mask = random_mask(config.model, 2, StepRandomness(seed=0, step=0), like=images)
    columns = reconstructions(method, images, mask)
    seen = np.repeat(np.repeat(mask.mask_BN.view(2, 4, 4).numpy() == 0, 16, 1), 16, 2)
    assert np.allclose(columns["predicted"][seen], columns["image"][seen])
    assert np.all(columns["seen"][~seen] == 0.5)

    def perfect(images, mask):
        patches = patchify(images, 16)
        return {"mae": standardise, "bootmae": standardise_channels, "simmim": lambda p: p}[name](patches)

    monkeypatch.setattr(method, "predict", perfect)
    assert np.allclose(reconstructions(method, images, mask)["predicted"], columns["image"], atol=1e-4)


def test_the_predictors_map_and_the_affinities_are_drawn_when_they_are_on():
    model = tiny(**SHAPE, mto=MtoConfig(enabled=True), pass_=PassConfig(enabled=True, predictor_depth=1))
    for name in ("mae", "simmim"):
        config = tiny_run(method=name, model=model)
        method = build_method(name, model).eval()
        pictures = draw(method, config, FakeStream(config).images(range(3)))
        assert pictures.keys() == {"reconstructions", "affinity", "predictor"}
        assert pictures["predictor"]["predicted loss"].shape == (3, 4, 4)
        layers = [value for title, value in pictures["affinity"].items() if title.startswith("layer")]
        assert np.allclose(np.nansum(layers[0], axis=(1, 2)), 1, atol=1e-5)
        assert "observer" not in vars(method)


def test_a_method_is_as_before_when_drawing_its_affinities_fails(monkeypatch):
    config = tiny_run(model=tiny(**SHAPE, mto=MtoConfig(enabled=True)))
    method = build_method("mae", config.model)
    monkeypatch.setattr(method, "reconstruct", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(method, config, FakeStream(config).images(range(1)))
    assert "observer" not in vars(method)


def test_heterogeneity_by_layer_is_plotted_from_the_log(tmp_path):
    config = tiny_run(model=tiny(mto=MtoConfig(enabled=True)), total_steps=3)
    train(config, FakeStream(config), run_dir=tmp_path)
    figure = heterogeneity_plot(tmp_path / "metrics.jsonl")
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 2, 2]
    assert heterogeneity_plot(tmp_path / "nothing.jsonl") is None
