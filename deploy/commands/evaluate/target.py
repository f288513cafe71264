"""Options that all evaluations share: which encoder, which images, where to compute and where the figures go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.table import Table
from tyro.conf import arg

from deploy.commands.combined import AnyRun
from deploy.console import Answer, table
from deploy.runs.rundir import find_run, write_json

if TYPE_CHECKING:
    import torch

    from trainer.evaluate.data import LabelledShards
    from trainer.evaluate.encoders import PretrainedEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOptions:
    """Which encoder, where it runs, where the figures go."""

    run: AnyRun = None
    timm: str | None = None
    """Name of a timm model to evaluate instead; its published weights are downloaded unless --weights is given."""
    official: str | None = None
    """Method (mae, simmim, bootmae, conmim, clmae) whose official checkpoint --weights is evaluated instead."""
    size: str = "vit_b"
    """Size of the official checkpoint: vit_s, vit_b, vit_l or vit_h."""
    weights: Path | None = None
    """Weights for --timm or --official: a safetensors file, or a PyTorch file of tensors, alone or under "model"."""
    image_size: int | None = None
    """Side of the images, in pixels; the encoder's own by default."""
    teacher: bool = False
    """Take the run's teacher (bootmae, conmim)."""
    averaged: bool = False
    """Take the run's moving average of the weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    out: Path | None = None
    """Folder for the figures and checkpoints; by default report/ of the run, or eval/NAME here."""

    def load(self) -> PretrainedEncoder:
        """Return the encoder.

        Raises:
            ValueError: the options contradict each other, or the weights do not fit.
        """
        from trainer.evaluate.encoders import encoder_of_official, encoder_of_run, encoder_of_timm

        if self.timm is not None and self.official is not None:
            raise ValueError(f"--timm and --official exclude each other; got {self.timm} and {self.official}.")
        if self.timm is not None:
            return encoder_of_timm(self.timm, self.weights, image_size=self.image_size)
        if self.official is not None:
            if self.weights is None:
                raise ValueError("--official needs --weights FILE, the checkpoint as published; got none.")
            return encoder_of_official(self.official, self.weights, size=self.size, image_size=self.image_size)
        if self.weights is not None:
            raise ValueError("--weights needs --timm NAME or --official METHOD, the model of the weights; got none.")
        return encoder_of_run(find_run(self.run).path, averaged=self.averaged, teacher=self.teacher)

    def torch_device(self) -> torch.device:
        from trainer.ranks.context import pick_device

        return pick_device(self.device, 0)

    def folder(self) -> Path:
        """Return the folder for the figures, and create it."""
        name = self.timm or self.official
        folder = self.out or (find_run(self.run).report if name is None else Path("eval") / name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def answer(self, name: str, title: str, data: dict[str, Any], view: Table | None = None) -> Answer:
        """Write the figures as NAME.json, and show `view`, or a table of those that are single values."""
        path = self.folder() / f"{name}.json"
        figures = {**data, "file": str(path)}
        write_json(path, figures)
        if view is None:
            rows = [(key, value) for key, value in figures.items() if not isinstance(value, list | dict)]
            view = table(title, ("", ""), rows)
        return Answer(data=figures, view=view)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions:
    """Labelled images in shards."""

    index: Path | None = None
    """Sample index of the labelled images to learn from; the run's own by default."""
    test_index: Path | None = None
    """Sample index of the labelled images to classify; the run's own by default."""
    most: int = 0
    """Take at most this many images of each index, evenly spread; 0 takes all."""

    def paths(self, encoder: EncoderOptions) -> tuple[Path, Path | None]:
        """Return the two indices; the second is None where there is none.

        Raises:
            ValueError: the encoder is of no run, and --index is missing.
        """
        if name := encoder.timm or encoder.official:
            if self.index is None:
                raise ValueError(f"{name} needs --index FILE, the labelled images to learn from; got none.")
            return self.index, self.test_index
        from deploy.runs.config import load_config

        data = load_config(find_run(encoder.run).config).data
        # The run's test images belong to the run's training images; another --index does not take them over.
        own = None if data.test_index is None or self.index is not None else Path(data.test_index)
        return self.index or Path(data.index), self.test_index or own

    def both(self, encoder: EncoderOptions) -> tuple[LabelledShards, LabelledShards]:
        """Return the images to learn from, and those to classify.

        Raises:
            ValueError: there are none to classify, or they have no labels.
        """
        from trainer.evaluate.data import LabelledShards

        train, test = self.paths(encoder)
        if test is None:
            raise ValueError("this evaluation needs --test-index FILE, labelled images to classify; got none.")
        return LabelledShards(train, most=self.most), LabelledShards(test, most=self.most)


EncoderArg = Annotated[EncoderOptions, arg(name="")]
ImagesArg = Annotated[ImageOptions, arg(name="")]
RecipeSettings = Annotated[
    tuple[str, ...], arg(help="fields of the recipe to change, as in --set epochs=20 batch=256.")
]
NEWEST_RUN, OWN_IMAGES = EncoderOptions(), ImageOptions()
