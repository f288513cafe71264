import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from scoring.features.encoders import model_size, timm_features, untrained_features
from scoring.features.images import dense_sift, fit_bag_of_words

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(3)
    return timm.create_model(TINY, num_classes=7, img_size=32).eval()


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_weights_of_a_file_give_the_models_own_features(tmp_path, tiny, form):
    path = tmp_path / f"weights.{form}"
    state = tiny.state_dict()
    save_file(state, path) if form == "safetensors" else torch.save({"state_dict": state}, path)
    space = timm_features(TINY, weights=path, size=32)
    with torch.no_grad():
        normal = (torch.from_numpy(IMAGES).float() / 255 - 0.5) / 0.5
        expected = tiny.forward_head(tiny.forward_features(normal), pre_logits=True)
    np.testing.assert_allclose(space(IMAGES), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([space(IMAGES[:2]), space(IMAGES[2:])]), space(IMAGES), atol=1e-5)


def test_wrong_weights_and_names_are_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"does not know 'vit_tiny_patch17_224'. Near: .*vit_tiny_patch16_224"):
        timm_features("vit_tiny_patch17_224")
    with pytest.raises(ValueError, match="must be a file"):
        timm_features(TINY, weights=tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(ValueError, match="must hold the weights of vit_tiny"):
        timm_features(TINY, weights=tmp_path / "text")
    save_file({"blocks.0.norm1.weight": torch.ones(192)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"it lacks 149, such as .cls_token"):
        timm_features(TINY, weights=tmp_path / "part.safetensors", size=32)


def test_a_file_that_runs_code_when_it_is_unpickled_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the file was unpickled",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="must hold the weights"):
        timm_features(TINY, weights=tmp_path / "trap.pth", size=32)


def test_no_network_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="Without a network give --weights FILE"):
        timm_features(TINY)


def test_an_untrained_network_is_the_same_for_a_seed():
    first, again, other = (untrained_features(size=32, seed=seed)(IMAGES) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (5, 384)
    assert np.abs(first - other).max() > 0.01
    assert model_size("vit_small_patch8_224.dino") == 224


def test_sift_tells_edges_from_their_turns_and_not_from_their_contrast():
    stripes = np.zeros((1, 3, 64, 64), np.uint8)
    stripes[..., :32] = 200
    upright, dim, lying = (dense_sift(image)[0] for image in (stripes, stripes // 2, stripes.swapaxes(2, 3).copy()))
    at_edge = (upright**2).sum(1) > 0.5
    assert 0 < at_edge.sum() < len(upright)
    assert (upright * dim).sum(1)[at_edge].mean() > 0.95
    assert (upright * lying).sum(1).mean() < 0.5


def test_words_are_those_of_the_data_and_a_seed():
    space, again = (fit_bag_of_words([IMAGES, IMAGES], seed=1) for _ in range(2))
    np.testing.assert_array_equal(space.words, again.words)
    np.testing.assert_allclose((space(IMAGES) ** 2).sum(1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="at least one image"):
        fit_bag_of_words([])
