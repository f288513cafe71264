import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchmetrics.detection import MeanAveragePrecision
from trainer_fakes import FakeStream, tiny, tiny_run

from trainer import train
from trainer.evaluate.detection import (
    DETECTION,
    DetectionConfig,
    average_precision,
    build_detector,
    detection,
    detector_groups,
    step_rate,
)
from trainer.evaluate.detection_data import CocoFolder, jitter, letterbox
from trainer.evaluate.encoders import encoder_of_run
from trainer.evaluate.vitdet import PlainBackbone, WindowBlock, relative_bias

CPU = torch.device("cpu")
SMALL = {"image_size": 64, "width": 16, "box_width": 32, "regions": 16, "proposals": 50, "window": 2}


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Three images with a bright square (category 7) or a bright bar (category 3)."""
    root = tmp_path_factory.mktemp("coco")
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(3):
        height, width = (64, 64) if number else (48, 64)
        pixels = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
        size = (32, 32) if number % 2 else (16, 44)
        top, left = (
            int(generator.integers(0, length - side)) for length, side in zip((height, width), size, strict=True)
        )
        pixels[top : top + size[0], left : left + size[1], number % 2] = 250
        Image.fromarray(pixels).save(root / f"{number}.png")
        right, bottom = left + size[1], top + size[0]
        images.append({"id": 10 + number, "file_name": f"{number}.png", "height": height, "width": width})
        annotations.append(
            {
                "id": 100 + number,
                "image_id": 10 + number,
                "category_id": 7 if number % 2 else 3,
                "bbox": [left, top, size[1], size[0]],
                "area": size[0] * size[1],
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
        )
    names = [{"id": 3, "name": "bar"}, {"id": 7, "name": "square"}]
    file = root / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    return CocoFolder(file, root)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("detector-run")
    config = tiny_run(model=tiny(image_size=32, patch_size=8, width=32), total_steps=2, warmup_steps=1)
    train(config, FakeStream(config), run_dir=directory)
    return encoder_of_run(directory)


def test_mask_rcnn_learns_a_tiny_data_set(boxes, pretrained, tmp_path):
    config = DetectionConfig(
        epochs=50,
        batch=3,
        lr=3e-3,
        warmup_steps=5,
        layer_decay=1.0,
        drop_path=0.0,
        scale=(0.9, 1.0),
        test_epochs=25,
        **SMALL,
    )
    found = detection(pretrained, boxes, boxes, config, device=CPU, directory=tmp_path)
    assert len(found["curve"]) == 2
    assert found["ap50_box"] > 0.5
    assert found["ap50_mask"] > 0.5
    assert detection(pretrained, boxes, boxes, config, device=CPU, directory=tmp_path) == found


def test_average_precision_equals_torchmetrics_and_that_of_the_truth_is_one(boxes):
    generator = np.random.default_rng(1)
    results, predictions, truths = [], [], []
    for number, image_id in enumerate(boxes.ids):
        _, target = boxes.load(number)
        moved = target["boxes"].repeat(3, 1) + torch.from_numpy(generator.normal(0, 4, (3, 4))).float()
        scores = torch.tensor([0.9, 0.6, 0.3]) - 0.1 * number
        labels = target["labels"].repeat(3)
        masks = torch.zeros(3, *target["masks"].shape[1:], dtype=torch.uint8)
        for one, box in zip(masks, moved.round().int().clamp(min=0).tolist(), strict=True):
            one[box[1] : box[3], box[0] : box[2]] = 1
        predictions.append({"boxes": moved, "scores": scores, "labels": labels, "masks": masks.bool()})
        truths.append({**target, "masks": target["masks"].bool()})
        results += coco_results(boxes, image_id, predictions[-1])
    ours = average_precision(boxes, results)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        reference = MeanAveragePrecision(iou_type=kind)
        reference.update(predictions, truths)
        figures = reference.compute()
        for ap, theirs in (("ap", "map"), ("ap50", "map_50"), ("ap75", "map_75")):
            assert ours[f"{ap}_{name}"] == pytest.approx(figures[theirs].item(), abs=2e-2 if kind == "segm" else 1e-5)
    exact = []
    for number, image_id in enumerate(boxes.ids):
        _, target = boxes.load(number)
        exact += coco_results(boxes, image_id, {**target, "scores": torch.ones(len(target["boxes"]))})
    assert average_precision(boxes, exact)["ap_box"] == pytest.approx(1.0)
    assert average_precision(boxes, exact)["ap_mask"] == pytest.approx(1.0)
    assert set(average_precision(boxes, []).values()) == {0.0}


def coco_results(boxes, image_id, one):
    from pycocotools import mask as rle

    results = []
    for box, label, score, mask in zip(one["boxes"].tolist(), one["labels"], one["scores"], one["masks"], strict=True):
        encoded = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        results.append(
            {
                "image_id": image_id,
                "category_id": boxes.categories[int(label) - 1],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": float(score),
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            }
        )
    return results


def test_relative_positions_equal_a_slow_twin():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 3, 4, 5, generator=generator)
    by_row, by_column = torch.randn(5, 5, generator=generator), torch.randn(7, 5, generator=generator)
    bias = relative_bias(query, by_row, by_column)[0, 1].view(3, 4, 3, 4)
    for h, w, i, j in np.ndindex(3, 4, 3, 4):
        wanted = query[0, 1, h, w] @ (by_row[h - i + 2] + by_column[w - j + 3])
        assert bias[h, w, i, j].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_a_block_that_attends_everywhere_is_timms_while_its_positions_are_zero(pretrained):
    trunk = pretrained.build(image_size=32).eval()
    tokens = torch.randn(2, 4, 4, 32)
    whole, windowed = (WindowBlock(trunk.blocks[0], window=window, grid=4) for window in (0, 2))
    assert torch.allclose(whole(tokens).flatten(1, 2), trunk.blocks[0](tokens.flatten(1, 2)), atol=1e-5)
    corner = windowed(tokens)[:, :2, :2].flatten(1, 2)
    assert torch.allclose(corner, trunk.blocks[0](tokens[:, :2, :2].flatten(1, 2)), atol=1e-5)
    odd = torch.randn(1, 5, 3, 32)
    assert windowed(odd).shape == odd.shape
    deep = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    windows = [block.window for block in PlainBackbone(deep, grid=14, window=7).blocks]
    assert [number for number, window in enumerate(windows) if not window] == [2, 5, 8, 11]
    levels = PlainBackbone(pretrained.build(image_size=64), grid=8, window=2, width=8)(torch.rand(1, 3, 64, 96))
    assert {name: tuple(found.shape[1:]) for name, found in levels.items()} == {
        "0": (8, 32, 48),
        "1": (8, 16, 24),
        "2": (8, 8, 12),
        "3": (8, 4, 6),
        "pool": (8, 2, 3),
    }


def test_rates_fall_with_depth_and_at_the_milestones(pretrained):
    model = build_detector(pretrained, DetectionConfig(**SMALL), num_classes=3)
    groups = detector_groups(model, DetectionConfig(**SMALL))
    scales = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert scales["roi_heads.box_predictor.cls_score.weight"] == (1.0, 0.1)
    assert scales["backbone.pyramid.levels.0.1.weight"][0] == 1.0
    assert scales["backbone.blocks.1.block.mlp.fc1.weight"][0] == pytest.approx(0.7)
    assert scales["backbone.blocks.0.rel_pos_h"] == pytest.approx((0.49, 0.0))
    assert scales["backbone.trunk.patch_embed.proj.weight"][0] == pytest.approx(0.343)
    rates = [step_rate(DETECTION["vitdet_100"], 1000, step) for step in (249, 800, 900, 970)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-6])


def test_crops_move_boxes_and_masks_alike(boxes):
    image, target = boxes.load(1)
    for seed in range(6):
        generator = np.random.default_rng(seed)
        pixels, moved = jitter(image, target, side=48, scale=(0.5, 1.6), generator=generator)
        assert pixels.shape == (3, 48, 48)
        for box, mask in zip(moved["boxes"], moved["masks"], strict=True):
            rows, columns = torch.nonzero(mask.any(dim=1)), torch.nonzero(mask.any(dim=0))
            edges = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert torch.allclose(box, edges.float(), atol=1.6)
    boxed, scale = letterbox(boxes.load(0)[0], 32)
    assert boxed.shape == (3, 32, 32)
    assert scale == 0.5
    assert not boxed[:, 24:].any()


def test_bad_data_and_encoders_are_refused(boxes, tmp_path):
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(ValueError, match="annotations must be a COCO instances file"):
        CocoFolder(tmp_path / "broken.json", tmp_path)
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 32; got 1000\. Try 992"):
        DetectionConfig(image_size=1000)
    with pytest.raises(ValueError, match="needs a plain ViT with absolute positions"):
        PlainBackbone(torch.nn.Linear(1, 1), grid=4)
