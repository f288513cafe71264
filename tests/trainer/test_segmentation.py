import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from trainer.evaluate.metrics import count_pixels, pixel_figures, top_k
from trainer.evaluate.segmentation import (
    SEGMENTATION,
    SegmentationConfig,
    epoch_order,
    poly_rate,
    segmentation,
    slide,
    starts,
)
from trainer.evaluate.segmentation_data import SceneAugment, SceneFolder
from trainer.evaluate.upernet import UperNet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images of two sizes: a bright square (class 1) on a dark ground (class 0), one column unknown."""
    root = tmp_path_factory.mktemp("scenes")
    generator = np.random.default_rng(0)
    for part, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            height, width = ((32, 48), (40, 32))[number % 2]
            labels = np.ones((height, width), np.uint8)
            top, left = generator.integers(2, height - 20), generator.integers(2, width - 20)
            labels[top : top + 18, left : left + 18] = 2
            pixels = np.where(labels[..., None] == 2, 220, 40) + generator.integers(-20, 20, (height, width, 3))
            labels[:, 0] = 0
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / part / f"{number}.jpg")
            Image.fromarray(labels).save(root / "annotations" / part / f"{number}.png")
    return root


def test_upernet_learns_a_tiny_scene_and_continues_after_an_interruption(scenes, tiny_encoder, tmp_path):
    config = SegmentationConfig(
        steps=24, batch=2, base_lr=5e-3, warmup_steps=4, crop=32, stride=16, base=(48, 32), width=16, test_every=12
    )

    def stop(done, total):
        if done == 15:
            raise KeyboardInterrupt

    whole = segmentation(tiny_encoder, scenes, config, device=CPU)
    assert whole["miou"] > 0.7
    assert whole["aacc"] > 0.8
    assert whole["classes"] == 2
    with pytest.raises(KeyboardInterrupt):
        segmentation(tiny_encoder, scenes, config, device=CPU, directory=tmp_path, progress=stop)
    assert segmentation(tiny_encoder, scenes, config, device=CPU, directory=tmp_path) == whole


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_torchmetrics(seed):
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randint(0, 5, (3, 20, 20), generator=generator)
    predicted = torch.where(
        torch.rand(3, 20, 20, generator=generator) < 0.6, wanted, torch.randint(0, 5, (3, 20, 20), generator=generator)
    )
    wanted[:, :2] = 255
    figures = pixel_figures(sum(count_pixels(one, other, 5) for one, other in zip(predicted, wanted, strict=True)))
    common = {"num_classes": 5, "ignore_index": 255}
    assert figures["miou"] == pytest.approx(MulticlassJaccardIndex(**common)(predicted, wanted).item(), abs=1e-6)
    for name, average in (("aacc", "micro"), ("macc", "macro")):
        assert figures[name] == pytest.approx(
            MulticlassAccuracy(average=average, **common)(predicted, wanted).item(), abs=1e-6
        )
    scores, labels = torch.rand(40, 8, generator=generator), torch.randint(0, 8, (40,), generator=generator)
    for k in (1, 5):
        reference = MulticlassAccuracy(num_classes=8, average="micro", top_k=k)(scores, labels).item()
        assert top_k(scores, labels)[f"acc{k}"] == pytest.approx(reference)


def test_classes_that_never_occur_count_nowhere():
    figures = pixel_figures(count_pixels(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3))
    assert figures == {
        "miou": pytest.approx(0.5),
        "aacc": pytest.approx(2 / 3),
        "macc": pytest.approx(0.75),
    }


def test_windows_cover_an_image_and_their_mean_is_the_whole():
    assert starts(1000, 512, 341) == [0, 341, 488]
    assert starts(512, 512, 341) == [0]
    image = torch.rand(3, 30, 45)
    scores = slide(lambda window: window, image, crop=16, stride=10, num_classes=3)
    assert torch.allclose(scores, image, atol=1e-6)
    small = torch.rand(3, 10, 12)
    assert torch.allclose(slide(lambda window: window, small, crop=16, stride=10, num_classes=3), small)


def test_augmented_pairs_stay_together_and_depend_on_the_draw_alone(scenes):
    folder = SceneFolder(scenes, "training")
    image, labels = folder.load(0)
    assert set(labels.unique().tolist()) == {0, 1, 255}
    augment = SceneAugment(crop=24, base=(48, 32))
    for draw in range(8):
        pixels, classes = augment(image, labels, draw)
        again = augment(image, labels, draw)
        assert torch.equal(pixels, again[0])
        assert pixels.shape == (3, 24, 24)
        bright, dark = pixels.mean(0)[classes == 1], pixels.mean(0)[classes == 0]
        if len(bright) and len(dark):
            assert bright.mean() > dark.mean()


def test_bad_data_and_recipes_are_refused(scenes, tmp_path, tiny_encoder):
    with pytest.raises(ValueError, match=r"needs images/training/\*\.jpg"):
        SceneFolder(tmp_path, "training")
    (tmp_path / "images" / "training").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "training" / "a.jpg")
    with pytest.raises(ValueError, match="every image needs a label map; 1 of"):
        SceneFolder(tmp_path, "training")
    with pytest.raises(ValueError, match=r"stride must be at most crop \(16\); got 17"):
        SegmentationConfig(crop=16, stride=17)
    assert (SEGMENTATION["ade20k_80k"].steps, SEGMENTATION["ade20k_160k"].steps) == (80_000, 160_000)
    deep = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert UperNet(deep, 2, width=8).taps == [3, 5, 7, 11]
    recipe = SEGMENTATION["ade20k_160k"]
    assert poly_rate(recipe, 1499) == pytest.approx(4e-4 * (1 - 1499 / 160_000))
    assert poly_rate(recipe, 159_999) < 1e-8
    assert sorted(epoch_order(draw, 5, 0) for draw in range(5, 10)) == [0, 1, 2, 3, 4]
