"""Pretrained encoders to evaluate: of one of our runs, of an official checkpoint, or of timm.

A `PretrainedEncoder` gives the frozen encoder for features, and builds timm's own model with its weights for tasks that
train: another image size, a classifier, stochastic depth.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import beit, swin_transformer, vision_transformer
from torch import Tensor, nn

from trainer.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, require
from trainer.record.export import TIMM_CLASSES, load_method, teacher_of, timm_arguments, timm_state
from trainer.record.official import State, load_official, read_weights

Pixel = tuple[float, float, float]
HEADS = ("head.", "fc_norm.", "norm.", "fc.", "classifier.")
"""Parts that a task initialises anew: the classifier, and the norm before it where the pooling moves it."""
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedEncoder:
    """An encoder with weights, and the images that it was trained on."""

    name: str
    encoder: nn.Module
    """`features(images)` returns tokens [B, 1 + N, D] of normalised images; frozen, in eval mode."""
    image_size: int
    """Side of its training images, in pixels."""
    mean: Pixel
    """Mean of the pixels that it was trained on, by channel, in [0, 1]; `std` likewise."""
    std: Pixel
    build: Callable[..., nn.Module]
    """Builds timm's model with the encoder's weights: build(num_classes=, image_size=, drop_path=)."""

    def pixel_statistics(self, device: torch.device | None = None, levels: int = 1) -> tuple[Tensor, Tensor]:
        """Return mean and deviation by channel, float32[3, 1, 1] each, of pixels in 0..levels (255 for bytes)."""
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * levels for values in (self.mean, self.std))
        return mean, std


class TimmEncoder(nn.Module):
    """A timm model without a classifier as an encoder of tokens, like the encoders of our methods."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.width = int(getattr(model, "num_features", 0))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the class token and the patch tokens, [B, 1 + N, D], after the last norm.

        The mean of the patch tokens stands in for a class token where the model has none (Swin, ConvNeXt).
        """
        tokens: Any = self.model.forward_features(images_BCHW)  # type: ignore[operator]
        if tokens.ndim == 4:  # Swin gives [B, H, W, D], networks of convolutions [B, D, H, W]
            tokens = (tokens if tokens.shape[-1] == self.width else tokens.permute(0, 2, 3, 1)).flatten(1, 2)
        # Of several prefix tokens the first is the class token; registers are left out.
        first = tokens[:, :1] if self.prefix else tokens.mean(dim=1, keepdim=True)
        return torch.cat([first, tokens[:, self.prefix :]], dim=1)


def encoder_of_run(path: str | Path, *, averaged: bool = False, teacher: bool = False) -> PretrainedEncoder:
    """Return the encoder of a run directory or of one checkpoint in it.

    `averaged` takes the moving average of the weights, `teacher` the method's teacher, as ConMIM is fine-tuned.

    Raises:
        CheckpointError: there is no intact checkpoint.
        ValueError: the run has no average or no teacher.
    """
    config, method = load_method(path, averaged=averaged)
    encoder = teacher_of(method, config.method) if teacher else method.encoder
    return _of_config(f"{Path(path).name} ({config.method})", encoder, config.model, config.mean, config.std)


def encoder_of_official(
    method: str, weights: str | Path, *, size: str = "vit_b", image_size: int | None = None
) -> PretrainedEncoder:
    """Return the encoder of a checkpoint as an official implementation publishes it; see `load_official`.

    Its training images were of `image_size`, the named size's own by default.

    Raises:
        ValueError: the file cannot be read or does not fit.
    """
    # Official checkpoints do not keep their pixel statistics; all five methods train with ImageNet's.
    config, encoder = load_official(method, weights, size, **({} if image_size is None else {"image_size": image_size}))
    return _of_config(f"{Path(weights).name} (official {method})", encoder, config, IMAGENET_MEAN, IMAGENET_STD)


def _of_config(name: str, encoder: nn.Module, config: ModelConfig, mean: Pixel, std: Pixel) -> PretrainedEncoder:
    """Return one of our encoders as a pretrained one; tasks get timm's class of the same shape with its weights."""
    kind, arguments = timm_arguments(encoder, config)
    return PretrainedEncoder(
        name=name,
        encoder=encoder,
        image_size=config.image_size,
        mean=mean,
        std=std,
        build=partial(_build_class, kind, arguments, timm_state(encoder)),
    )


def encoder_of_timm(
    name: str, weights: str | Path | None = None, *, image_size: int | None = None
) -> PretrainedEncoder:
    """Return a timm model by its name in timm's registry, for images of `image_size`, the model's own by default.

    `weights` is a file with timm's names; without it timm downloads its published weights.

    Raises:
        ValueError: timm has no such model, or the file cannot be read or does not fit.
    """
    names = timm.list_models()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    require(
        name.split(".", maxsplit=1)[0] in names,
        f"a timm model must be one of its {len(names)}; got {name!r}. Near: {', '.join(near) or 'none'}.",
    )
    state = None if weights is None else read_weights(weights)
    for prefix in ("module.", "model.", "encoder."):  # of wrappers that people save
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    build = partial(_build_timm, name, state)
    model = build(num_classes=0, image_size=image_size)
    described: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return PretrainedEncoder(
        name=name if weights is None else f"{name} ({Path(weights).name})",
        encoder=TimmEncoder(model).eval(),
        image_size=image_size or int(described.get("input_size", (3, 224, 224))[-1]),
        mean=tuple(described.get("mean", IMAGENET_MEAN)),
        std=tuple(described.get("std", IMAGENET_STD)),
        build=build,
    )


def _build_class(
    kind: str,
    arguments: dict[str, Any],
    state: State,
    *,
    num_classes: int = 0,
    image_size: int | None = None,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a timm class for a task, from its `timm_arguments` in pre-training, and give it an encoder's weights.

    `num_classes` of 0 gives no classifier; the image size stays by default.
    """
    changed = {**arguments, "num_classes": num_classes, "drop_path_rate": drop_path, "global_pool": "avg"}
    if image_size is not None:
        changed["img_size"] = image_size
    if kind == "Beit":
        # BEiT fine-tunes with one position table a block, each a copy of the shared one of pre-training.
        changed |= {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True}
        state = {name: value for name, value in state.items() if name != SHARED_TABLE} | {
            f"blocks.{block}.attn.relative_position_bias_table": state[SHARED_TABLE]
            for block in range(arguments["depth"])
        }
    return load_into(TIMM_CLASSES[kind](**changed), state)


def _build_timm(
    name: str,
    state: State | None,
    *,
    num_classes: int = 0,
    image_size: int | None = None,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a timm model for a task and give it weights; without a state timm downloads its own."""
    arguments: dict[str, Any] = {"num_classes": num_classes, "pretrained": state is None}
    arguments |= {"img_size": image_size} if image_size is not None else {}
    arguments |= {"drop_path_rate": drop_path} if drop_path else {}
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except TypeError:  # networks of convolutions take any size and have no img_size
        arguments.pop("img_size", None)
        model = timm.create_model(name, **arguments)
    return model if state is None else load_into(model, state)


RESIZERS: dict[type[nn.Module], Callable[..., Any]] = {
    vision_transformer.VisionTransformer: vision_transformer.checkpoint_filter_fn,
    beit.Beit: beit.checkpoint_filter_fn,
    swin_transformer.SwinTransformer: swin_transformer.checkpoint_filter_fn,
}
"""timm's functions that resize positions to another image size, by class."""


def load_into(model: nn.Module, state: State) -> nn.Module:
    """Load weights, positions resized to the model's image; heads may be missing or left over.

    Raises:
        ValueError: anything else is missing, left over or of another shape.
    """
    resize: Any = RESIZERS.get(type(model), lambda found, of: found)
    wanted = model.state_dict()

    try:
        # Only a head may be left over or of another shape; it is dropped here, so that the task's own stays as built.
        found = {
            name: value
            for name, value in resize(dict(state), model).items()
            if not name.startswith(HEADS) or (name in wanted and wanted[name].shape == value.shape)
        }
        missing, left = model.load_state_dict(found, strict=False)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"the weights must fit the model; {str(error).splitlines()[-1].strip()}") from error
    # Swin's and BEiT's index tables are computed from the size, so that some files leave them out.
    computed = ("relative_position_index", "attn_mask")
    wrong = [name for name in (*missing, *left) if not name.startswith(HEADS) and not name.endswith(computed)]
    require(
        not wrong,
        f"the weights must fit {type(model).__name__}; {len(wrong)} names are missing or left over, first "
        f"{', '.join(wrong[:3])}. Choose the model that they were trained with.",
    )
    return model
