"""`tempera eval finetune|detection|segmentation`: evaluations that train the whole encoder."""

from __future__ import annotations

from pathlib import Path

from deploy.commands.evaluate.target import NEWEST_RUN, OWN_IMAGES, EncoderArg, ImagesArg, RecipeSettings
from deploy.console import Answer, progress_bar


def finetune(
    encoder: EncoderArg = NEWEST_RUN,
    images: ImagesArg = OWN_IMAGES,
    *,
    recipe: str = "mae",
    test_epochs: int = 1,
    set: RecipeSettings = (),
) -> Answer:
    """Fine-tune the whole encoder by a paper's recipe; an interrupted one is continued.

    Args:
        recipe: mae, mae_l, mae_h, simmim, bootmae, conmim, prototypes, mto_mae, ...; a wrong name lists all.
        test_epochs: epochs between tests.
    """
    from deploy.runs.overrides import override
    from trainer.config import choose
    from trainer.evaluate.finetune import finetune as train_all
    from trainer.evaluate.recipes import FINETUNE

    config = override(choose(recipe, FINETUNE, "recipe"), set)
    train, test = images.both(encoder)
    pretrained = encoder.load()
    with progress_bar(f"fine-tuning ({recipe})") as advance:
        figures = train_all(
            pretrained,
            train,
            test,
            config,
            device=encoder.torch_device(),
            image_size=encoder.image_size,
            evaluate_epochs=test_epochs,
            directory=encoder.folder() / f"finetune-{recipe}",
            progress=advance,
        )
    data = {"encoder": pretrained.name, "recipe": recipe, "bad_images": len(train.bad) + len(test.bad), **figures}
    return encoder.answer("finetune", f"fine-tuning of {pretrained.name}", data)


def detection(
    encoder: EncoderArg = NEWEST_RUN,
    *,
    train_annotations: Path,
    train_images: Path,
    test_annotations: Path,
    test_images: Path,
    recipe: str = "vitdet_100",
    set: RecipeSettings = (),
) -> Answer:
    """Detect objects and their masks: train Mask R-CNN on a plain ViT (ViTDet) by COCO-format data; report COCO's AP.

    Args:
        train_annotations: COCO instances file to learn from.
        train_images: folder of its images.
        test_annotations: COCO instances file to test on.
        test_images: folder of its images.
        recipe: vitdet_100, or pass_12: PASS's 12 epochs at batch 16.
    """
    from deploy.runs.overrides import override
    from trainer.config import choose
    from trainer.evaluate.detection import DETECTION
    from trainer.evaluate.detection import detection as train_detector
    from trainer.evaluate.detection_data import CocoFolder

    config = override(choose(recipe, DETECTION, "recipe"), set)
    train, test = CocoFolder(train_annotations, train_images), CocoFolder(test_annotations, test_images)
    pretrained, directory = encoder.load(), encoder.folder() / f"detection-{recipe}"
    device = encoder.torch_device()
    with progress_bar(f"detection ({recipe})") as advance:
        figures = train_detector(pretrained, train, test, config, device=device, directory=directory, progress=advance)
    data = {"encoder": pretrained.name, "recipe": recipe, **figures}
    return encoder.answer("detection", f"detection with {pretrained.name}", data)


def segmentation(
    encoder: EncoderArg = NEWEST_RUN,
    *,
    data: Path,
    num_classes: int = 0,
    recipe: str = "ade20k_160k",
    set: RecipeSettings = (),
) -> Answer:
    """Classify every pixel: train UperNet on a ViT by ADE20K-format data; report mIoU, pixel and class accuracy.

    Args:
        data: folder with images/{training,validation}/*.jpg and annotations/{training,validation}/*.png.
        num_classes: classes of pixels (150 for ADE20K); counted in the label maps by default.
        recipe: ade20k_160k, or ade20k_80k as PASS reports.
    """
    from deploy.runs.overrides import override
    from trainer.config import choose
    from trainer.evaluate.segmentation import SEGMENTATION
    from trainer.evaluate.segmentation import segmentation as train_segmenter

    config = override(choose(recipe, SEGMENTATION, "recipe"), set)
    pretrained, directory = encoder.load(), encoder.folder() / f"segmentation-{recipe}"
    device = encoder.torch_device()
    with progress_bar(f"segmentation ({recipe})") as advance:
        figures = train_segmenter(
            pretrained, data, config, device=device, num_classes=num_classes, directory=directory, progress=advance
        )
    found = {"encoder": pretrained.name, "recipe": recipe, **figures}
    return encoder.answer("segmentation", f"segmentation with {pretrained.name}", found)
