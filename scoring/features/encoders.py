"""Features of networks: any timm model by name, with weights of the hub, of a file, or random ones.

The features are the input of the network's classifier, pooled as the network was trained: the class token of DINO's
vision transformers, the mean of the tokens or of the map elsewhere.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data.config import resolve_model_data_config

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]

IMAGES_AT_ONCE = 128
UNTRAINED = "vit_small_patch16_224"
UNTRAINED_TOKENS, SMALLEST_PATCH = 14, 4
"""Patches along a side of the untrained network, as 16-pixel patches of 224 pixels have; fewer of a small image."""


class EncoderFeatures:
    """The feature space of a module that maps normalised images [B, 3, H, W] to features [B, F]."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        side: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Move the module to a device, in eval mode.

        Args:
            model: the module.
            mean: mean of the pixels in [0, 1], by channel.
            std: their standard deviation.
            side: the module gets the top left square of this side in pixels; None for the whole image.
            device: a torch device.
        """
        self._device, self._side = torch.device(device), side
        self._model = model.to(self._device).eval()
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(3, 1, 1) * 255.0 for values in (mean, std)
        )

    @torch.inference_mode()
    def __call__(self, images: Uint8) -> Float32:
        """Return the features of uint8 [n, 3, H, W]: float32 [n, F]."""
        parts = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            batch = torch.from_numpy(images[start : start + IMAGES_AT_ONCE]).to(self._device).float()
            normal = ((batch - self._mean) / self._std)[..., : self._side, : self._side]
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
                features = self._model(normal)
            parts.append(features.float().cpu().numpy())
        return np.concatenate(parts)


def timm_features(
    name: str, *, weights: Path | None = None, size: int | None = None, seed: int = 0, device: str = "cpu"
) -> EncoderFeatures:
    """Return the feature space of a timm model.

    Args:
        name: timm's name, e.g. "vit_small_patch8_224.dino".
        weights: safetensors, or a PyTorch file that holds tensors only; None downloads them from the hub.
        size: side of the images where it differs from the model's own.
        seed: seed of weights that the file does not set.
        device: a torch device.

    Raises:
        ValueError: unknown name, weights of another model, or no connection to the hub.
    """
    arguments: dict[str, Any] = {"num_classes": 0}
    own_size = model_size(name)
    if size is not None and size != own_size:
        arguments["img_size"] = size
    torch.manual_seed(seed)
    try:
        model = timm.create_model(name, pretrained=weights is None, **arguments)
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise ValueError(
            f"{name} must be buildable, with weights of the hub where no file is given; it is not "
            f"({type(error).__name__}: {_first_line(error)}). Without a network give --weights FILE."
        ) from error
    if weights is not None:
        load_weights(model, name, weights)
    config: Any = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return EncoderFeatures(model, mean=config["mean"], std=config["std"], device=device)


def untrained_features(*, size: int, seed: int = 0, device: str = "cpu") -> EncoderFeatures:
    """Return the space of a ViT-S with random weights (one of the paper's, METHODS section 8).

    Args:
        size: side of the images; a patch is a 14th of it, or 4 pixels. Pixels beyond whole patches are cut off.
        seed: seed of the weights.
        device: a torch device.
    """
    torch.manual_seed(seed)
    patch = max(SMALLEST_PATCH, size // UNTRAINED_TOKENS)
    side = size // patch * patch
    model = timm.create_model(UNTRAINED, num_classes=0, img_size=side, patch_size=patch)
    half = (0.5, 0.5, 0.5)
    return EncoderFeatures(model, mean=half, std=half, side=side, device=device)


def model_size(name: str) -> int:
    """Return the side of the images that a timm model takes, in pixels.

    Raises:
        ValueError: unknown name; the message has the nearest ones.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    if config is None:
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"timm must know the model; it does not know {name!r}. Near: {', '.join(near) or 'none'}.")
    return int(config.input_size[-1])


def load_weights(model: torch.nn.Module, name: str, weights: Path) -> None:
    """Fill a model from a file; parameters of a classifier in the file are ignored.

    Raises:
        ValueError: no such file, not a file of tensors only, or tensors of another model.
    """
    if not weights.is_file():
        raise ValueError(f"--weights must be a file; {weights} is none.")
    try:
        # weights_only: a file that would run code when it is unpickled raises here.
        found = timm.models.load_state_dict(str(weights), weights_only=True)
        adapted = getattr(timm.models.vision_transformer, "checkpoint_filter_fn", None)
        is_vit = isinstance(model, timm.models.VisionTransformer)
        state = adapted(found, model) if adapted and is_vit else found
        missing, _ = model.load_state_dict(state, strict=False)
    except Exception as error:  # unreadable, not tensors only, or tensors of other shapes
        raise ValueError(
            f"{weights} must hold the weights of {name}, as safetensors or as a PyTorch file of tensors; it does not "
            f"({type(error).__name__}: {_first_line(error)})."
        ) from error
    if missing:
        raise ValueError(
            f"{weights} must hold all the weights of {name}; it lacks {len(missing)}, such as {missing[0]!r}."
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
