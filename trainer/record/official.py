"""Encoders out of the checkpoints that the official implementations publish, under the names of our parameters."""

import argparse
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from trainer.config import ModelConfig, choose, model_size, require
from trainer.methods import build_method

State = dict[str, Tensor]
OTHER_PARTS: dict[str, tuple[str, ...]] = {
    "mae": ("decoder_", "mask_token"),
    "simmim": ("decoder.",),
    "clmae": ("decoder_", "mask_token", "masking_net."),
    "bootmae": ("decode_", "de_pos_embed", "down", "mask_token", "lm_head"),
    "conmim": ("projectors.", "lm_head."),
}
"""First letters of the official names that are not of the encoder, by method."""


def load_official(method: str, path: str | Path, size: str = "vit_b", **fields: Any) -> tuple[ModelConfig, nn.Module]:
    """Return the shape and the encoder of an official checkpoint, in eval mode on the CPU.

    The file is as published, or converted to safetensors; decoders and projectors may be missing. `size` names the
    size that it was trained with, `fields` are other fields of the shape, such as image_size.

    Raises:
        ValueError: the method is unknown, the file cannot be read, or names or shapes do not fit the encoder (the
            first ones are named).
    """
    choose(method, OTHER_PARTS, "method")
    stored = read_weights(path)
    # The initial value is overwritten; what counts is whether the blocks have LayerScale, as ConMIM's have.
    scaled = {"layer_scale": 0.1} if any(".gamma_" in name for name in stored) else {}
    config = model_size(size, **{**scaled, **fields})
    encoder = build_method(method, config).encoder
    wanted, found = encoder.state_dict(), encoder_state(method, stored)
    wrong = sorted(
        {name for name in wanted if name not in found or found[name].shape != wanted[name].shape}
        | (found.keys() - wanted.keys())
    )
    require(
        not wrong,
        f"an official {method} checkpoint must have the names and shapes of a {size} encoder; {path} differs in "
        f"{len(wrong)}, first {', '.join(wrong[:3])}. Choose the method and the size that it was trained with.",
    )
    encoder.load_state_dict(found)
    return config, encoder.eval()


def read_weights(path: str | Path) -> State:
    """Return the state dict of a safetensors file, or of a PyTorch file that holds it alone or as "model".

    Raises:
        ValueError: the file cannot be read so. Nothing but tensors and plain values is ever unpickled.
    """
    try:
        # MAE, ConMIM and BootMAE keep their command line, a Namespace of plain values, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: State = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # torch, safetensors and the file system each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"weights must be a safetensors file, or a PyTorch file of tensors; {path} cannot be read as one "
            f"({reason}). Convert it once with safetensors.torch.save_file."
        ) from error
    require(
        bool(state) and all(isinstance(value, Tensor) for value in state.values()),
        f'weights must be a state dict, alone or under "model"; {path} holds {", ".join(list(state)[:3]) or "none"}.',
    )
    return state


def encoder_state(method: str, state: State) -> State:
    """Return the encoder's part of an official state dict under our names."""
    computed = ("attn_mask", "relative_position_index")  # from the size
    kept = {
        name: value
        for name, value in state.items()
        if not name.startswith(OTHER_PARTS[method]) and not name.endswith(computed)
    }
    if method == "bootmae":
        for name in [name for name in kept if name.endswith(".q_bias") and name.replace("q_bias", "v_bias") in kept]:
            q, v = kept.pop(name), kept.pop(name.replace("q_bias", "v_bias"))
            kept[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])  # keys have none
    if method == "simmim":
        kept = {name.removeprefix("encoder."): value for name, value in kept.items()}
        if any(name.startswith("layers.") for name in kept):  # a Swin
            # timm has a stage's downsampling at the start of the next stage.
            kept = {
                re.sub(r"layers\.(\d+)\.down", lambda found: f"layers.{int(found[1]) + 1}.down", name): value
                for name, value in kept.items()
            }
            kept = {name if name == "mask_token" else f"trunk.{name}": value for name, value in kept.items()}
    return kept
