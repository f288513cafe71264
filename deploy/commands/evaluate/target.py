"""What an evaluation is asked about: an encoder and images, as options that all evaluations share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from deploy.runs.rundir import RunDir, find_run, write_json

if TYPE_CHECKING:
    import torch

    from trainer.evaluate.data import LabelledShards
    from trainer.evaluate.encoders import PretrainedEncoder

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """Whose encoder, where it runs, where the figures go."""

    run: Path | None = None
    """The run's directory; by default the one that is alive under runs/, or the newest."""
    timm: str | None = None
    """A timm model instead, by name; its published weights are loaded from the network unless --weights is given."""
    weights: Path | None = None
    """Safetensors file with the timm model's weights."""
    image_size: int | None = None
    """Side of the images, in pixels; the encoder's own by default."""
    teacher: bool = False
    """Take the run's teacher (bootmae, conmim)."""
    averaged: bool = False
    """Take the run's moving average of the weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    out: Path | None = None
    """Folder for the figures and checkpoints; by default report/ of the run, or eval/ here for a timm model."""

    def load(self) -> PretrainedEncoder:
        """The encoder.

        Raises:
            ValueError: --weights without --timm, or they do not fit.
        """
        from trainer.evaluate.encoders import encoder_of_run, encoder_of_timm

        if self.timm is not None:
            return encoder_of_timm(self.timm, self.weights, image_size=self.image_size)
        if self.weights is not None:
            raise ValueError("--weights needs --timm NAME, the model that they belong to; got none.")
        return encoder_of_run(self.own_run().path, averaged=self.averaged, teacher=self.teacher)

    def own_run(self) -> RunDir:
        """The run that is evaluated."""
        return find_run(self.run)

    def place(self) -> torch.device:
        """The device."""
        from trainer.ranks.context import pick_device

        return pick_device(self.device, 0)

    def folder(self) -> Path:
        """Where the figures go; made."""
        folder = self.out or (self.own_run().report if self.timm is None else Path("eval") / self.timm)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def keep(self, name: str, data: dict[str, Any]) -> dict[str, Any]:
        """Write the figures as NAME.json, and return them with the file's path."""
        path = self.folder() / f"{name}.json"
        found = {**data, "file": str(path)}
        write_json(path, found)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Labelled images in shards."""

    index: Path | None = None
    """Sample index of the labelled images to learn from; the run's own by default."""
    test_index: Path | None = None
    """Sample index of the labelled images to classify; the run's own by default."""
    most: int = 0
    """At most so many images of each, evenly taken; 0 takes all."""

    def paths(self, encoder: Encoder) -> tuple[Path, Path | None]:
        """The two indices; the second is None where there is none.

        Raises:
            ValueError: a timm model without --index.
        """
        if encoder.timm is not None:
            if self.index is None:
                raise ValueError("a timm model needs --index FILE, the labelled images to learn from; got none.")
            return self.index, self.test_index
        from deploy.runs.config import load_config

        data = load_config(encoder.own_run().config).data
        own = None if data.test_index is None or self.index is not None else Path(data.test_index)
        return self.index or Path(data.index), self.test_index or own

    def both(self, encoder: Encoder) -> tuple[LabelledShards, LabelledShards]:
        """The images to learn from, and those to classify.

        Raises:
            ValueError: there are none to classify, or they have no labels.
        """
        from trainer.evaluate.data import LabelledShards

        train, test = self.paths(encoder)
        if test is None:
            raise ValueError("this evaluation needs --test-index FILE, labelled images to classify; got none.")
        return LabelledShards(train, most=self.most), LabelledShards(test, most=self.most)


OWN_ENCODER, OWN_IMAGES = Encoder(), Images()
"""What is evaluated when nothing is said: the newest run, on its own images."""


def changed(config: C, settings: tuple[str, ...]) -> C:
    """A recipe with some fields changed, given as field=value.

    Raises:
        ValueError: no "=", no such field (the nearest is named), or a value out of range.
    """
    from trainer.config import from_dict

    values: dict[str, Any] = asdict(config)  # type: ignore[call-overload]  # a recipe is a dataclass
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting must be field=value; got {setting!r}.")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return from_dict(type(config), values)
