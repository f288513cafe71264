"""Evaluations that look at places in an image: detection and segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from deploy.commands.evaluate.frozen import answer
from deploy.commands.evaluate.target import OWN_ENCODER, Encoder, changed
from deploy.console import Answer, progress_bar


def detection(
    what: Annotated[Encoder, arg(name="")] = OWN_ENCODER,
    *,
    train_annotations: Path,
    train_images: Path,
    test_annotations: Path,
    test_images: Path,
    recipe: str = "vitdet_100",
    set: tuple[str, ...] = (),
) -> Answer:
    """Object detection and instance segmentation: Mask R-CNN (ViTDet) on COCO-format data, COCO's AP.

    Args:
        what: the encoder, a plain ViT.
        train_annotations: COCO instances file to learn from.
        train_images: folder of its images.
        test_annotations: COCO instances file to test on.
        test_images: folder of its images.
        recipe: vitdet_100, or pass_12: PASS's 12 epochs at batch 16.
        set: fields of the recipe to change, as in --set epochs=12 batch=8.
    """
    from trainer.config import choose
    from trainer.evaluate.detection import DETECTION
    from trainer.evaluate.detection import detection as train_detector
    from trainer.evaluate.detection_data import CocoFolder

    config = changed(choose(recipe, DETECTION, "recipe"), set)
    train, test = CocoFolder(train_annotations, train_images), CocoFolder(test_annotations, test_images)
    pretrained, directory = what.load(), what.folder() / f"detection-{recipe}"
    with progress_bar(f"detection ({recipe})") as advance:
        figures = train_detector(
            pretrained, train, test, config, device=what.place(), directory=directory, progress=advance
        )
    data = {"encoder": pretrained.name, "recipe": recipe, **figures}
    return answer(what, "detection", f"detection with {pretrained.name}", data)


def segmentation(
    what: Annotated[Encoder, arg(name="")] = OWN_ENCODER,
    *,
    data: Path,
    num_classes: int = 0,
    recipe: str = "ade20k_160k",
    set: tuple[str, ...] = (),
) -> Answer:
    """Semantic segmentation: UperNet on ADE20K-format data, mIoU, all-pixel and mean class accuracy.

    Args:
        what: the encoder, a ViT.
        data: folder with images/{training,validation}/*.jpg and annotations/{training,validation}/*.png.
        num_classes: classes of pixels (150 for ADE20K); counted in the label maps by default.
        recipe: ade20k_160k, or ade20k_80k as PASS reports.
        set: fields of the recipe to change, as in --set steps=20000 batch=8.
    """
    from trainer.config import choose
    from trainer.evaluate.segmentation import SEGMENTATION
    from trainer.evaluate.segmentation import segmentation as train_segmenter

    config = changed(choose(recipe, SEGMENTATION, "recipe"), set)
    pretrained, directory = what.load(), what.folder() / f"segmentation-{recipe}"
    with progress_bar(f"segmentation ({recipe})") as advance:
        figures = train_segmenter(
            pretrained,
            data,
            config,
            device=what.place(),
            num_classes=num_classes,
            directory=directory,
            progress=advance,
        )
    found = {"encoder": pretrained.name, "recipe": recipe, **figures}
    return answer(what, "segmentation", f"segmentation with {pretrained.name}", found)
