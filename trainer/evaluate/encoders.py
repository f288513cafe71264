"""Pretrained encoders to evaluate: of one of our runs, or of timm, with what their images must look like.

A `PretrainedEncoder` gives the frozen encoder for features, and builds timm's own model with its weights for tasks that
train: another image size, a classifier, stochastic depth. Weights are read from safetensors only.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import beit, swin_transformer, vision_transformer
from torch import Tensor, nn

from trainer.config import IMAGENET_MEAN, IMAGENET_STD, require
from trainer.record.export import TIMM_CLASSES, load_method, timm_arguments, timm_state

State = dict[str, Tensor]
HEADS = ("head.", "fc_norm.", "norm.", "fc.", "classifier.")
"""Parts that a task makes anew: the classifier, and the norm before it where the pooling moves it."""
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedEncoder:
    """An encoder and its images."""

    name: str
    """What people call it."""
    encoder: nn.Module
    """`features(images)` gives tokens [B, 1 + N, D] of normalised images; frozen, in eval mode."""
    image_size: int
    """Side that it was trained at, in pixels."""
    mean: tuple[float, float, float]
    """Pixel mean by channel in [0, 1]."""
    std: tuple[float, float, float]
    """Pixel standard deviation by channel."""
    build: Callable[..., nn.Module]
    """Makes timm's model: build(num_classes=, image_size=, drop_path=) with the encoder's weights."""


class TimmEncoder(nn.Module):
    """A timm model as an encoder of tokens; what has no class token gets the mean of its tokens in its place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.width = int(getattr(model, "num_features", 0))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the class token and the patch tokens, [B, 1 + N, D], after the last norm."""
        tokens: Any = self.model.forward_features(images_BCHW)  # type: ignore[operator]
        if tokens.ndim == 4:
            tokens = (tokens if tokens.shape[-1] == self.width else tokens.permute(0, 2, 3, 1)).flatten(1, 2)
        first = tokens[:, :1] if self.prefix else tokens.mean(dim=1, keepdim=True)
        return torch.cat([first, tokens[:, self.prefix :]], dim=1)

    forward = features


def encoder_of_run(path: str | Path, *, averaged: bool = False, teacher: bool = False) -> PretrainedEncoder:
    """Return the encoder of a run directory or checkpoint.

    Args:
        path: run directory, or one step-* directory.
        averaged: take the moving average of the weights.
        teacher: take the method's teacher, as ConMIM is fine-tuned.

    Raises:
        CheckpointError: there is no intact checkpoint.
        ValueError: the run has no average or no teacher.
    """
    config, method = load_method(path, averaged=averaged)
    encoder: Any = method.encoder
    if teacher:
        found = [getattr(method, name, None) for name in ("teacher", "teacher_encoder")]
        require(any(found), f"a teacher needs a run of bootmae or conmim; {path} is of {config.method}.")
        encoder = next(part for part in found if part is not None)
    kind, arguments = timm_arguments(encoder, config.model)
    return PretrainedEncoder(
        name=f"{Path(path).name} ({config.method})",
        encoder=encoder,
        image_size=config.model.image_size,
        mean=config.mean,
        std=config.std,
        build=partial(_build_class, kind, arguments, timm_state(encoder)),
    )


def encoder_of_timm(
    name: str, weights: str | Path | None = None, *, image_size: int | None = None
) -> PretrainedEncoder:
    """Return a timm model by name.

    Args:
        name: name in timm's registry.
        weights: safetensors file with timm's names; without it timm loads its published weights, from the network.
        image_size: side of the images; the model's own by default.

    Raises:
        ValueError: no such model, the file is no safetensors, or does not fit the model.
    """
    _check_name(name)
    state = None if weights is None else read_state(weights)
    build = partial(_build_timm, name, state)
    model = build(num_classes=0, **({} if image_size is None else {"image_size": image_size}))
    described: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    size = image_size or int(described.get("input_size", (3, 224, 224))[-1])
    return PretrainedEncoder(
        name=name if weights is None else f"{name} ({Path(weights).name})",
        encoder=TimmEncoder(model).eval(),
        image_size=size,
        mean=tuple(described.get("mean", IMAGENET_MEAN)),
        std=tuple(described.get("std", IMAGENET_STD)),
        build=build,
    )


def read_state(path: str | Path) -> State:
    """Read a safetensors file; the prefix of wrappers (`module.`, `model.`) is dropped where all names have it.

    Raises:
        ValueError: it is missing or no safetensors.
    """
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises several kinds
        raise ValueError(
            f"weights must be a safetensors file; {path} cannot be read as one ({error}). Convert it once with "
            "safetensors.torch.save_file."
        ) from error
    for prefix in ("module.", "model.", "encoder."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check_name(name: str) -> None:
    """Refuse a name that timm does not know, with the nearest ones."""
    names = timm.list_models()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    require(
        name.split(".", maxsplit=1)[0] in names,
        f"a timm model must be one of its {len(names)}; got {name!r}. Near: {', '.join(near) or 'none'}.",
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
    """Build a timm class for a task and give it an encoder's weights."""
    changed = {**arguments, "num_classes": num_classes, "drop_path_rate": drop_path, "global_pool": "avg"}
    if image_size is not None:
        changed["img_size"] = image_size
    if kind == "Beit":  # fine-tuning gives every block a position table of its own, a copy of the shared one
        changed |= {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True}
        state = {name: value for name, value in state.items() if name != SHARED_TABLE} | {
            f"blocks.{block}.attn.relative_position_bias_table": state[SHARED_TABLE]
            for block in range(arguments["depth"])
        }
    model = TIMM_CLASSES[kind](**changed)
    return load_into(model, state)


def _build_timm(
    name: str,
    state: State | None,
    *,
    num_classes: int = 0,
    image_size: int | None = None,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a timm model for a task and give it weights."""
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
"""timm's own functions that bring positions to another image size, by class."""


def load_into(model: nn.Module, state: State) -> nn.Module:
    """Load weights, positions resized to the model's image; heads may be missing or left over.

    Raises:
        ValueError: anything else is missing, left over or of another shape.
    """
    resize: Any = RESIZERS.get(type(model), lambda found, of: found)
    wanted = model.state_dict()
    try:
        found = {name: value for name, value in resize(dict(state), model).items() if not _is_head(name, wanted, value)}
        missing, left = model.load_state_dict(found, strict=False)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"the weights must fit the model; {str(error).splitlines()[-1].strip()}") from error
    wrong = [name for name in missing if not name.startswith(HEADS)] + [n for n in left if not n.startswith(HEADS)]
    wrong = [name for name in wrong if "relative_position_index" not in name and "attn_mask" not in name]
    require(
        not wrong,
        f"the weights must fit {type(model).__name__}; {len(wrong)} names are missing or left over, first "
        f"{', '.join(wrong[:3])}. Choose the model that they were trained with.",
    )
    return model


def _is_head(name: str, wanted: State, value: Tensor) -> bool:
    """Tell whether a stored tensor is of a head that the model lacks or has in another shape."""
    return name.startswith(HEADS) and (name not in wanted or wanted[name].shape != value.shape)
