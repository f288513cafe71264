"""Checkpoints of the official implementations, renamed to our parameters.

Each method's map is one function in MAPS: official names and tensors in, our names and tensors out. `load_official`
reads a published checkpoint, renames it and keeps the encoder.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from trainer.config import ModelConfig, choose, model_size, require
from trainer.methods import build_method

State = dict[str, Tensor]


def load_official(method: str, path: str | Path, size: str = "vit_b", **fields: Any) -> tuple[ModelConfig, nn.Module]:
    """Return the shape and the encoder of an official checkpoint, in eval mode on the CPU.

    Args:
        method: name in `trainer.METHODS`.
        path: checkpoint as published, or converted to safetensors; decoders and projectors may be missing.
        size: named size that it was trained with.
        fields: other fields of the shape, such as image_size.

    Raises:
        ValueError: the method is unknown, the file cannot be read, or names or shapes do not fit the encoder (the
            first ones are named).
    """
    rename, stored = choose(method, MAPS, "method"), read_weights(path)
    # The initial value is overwritten; what counts is whether the blocks have LayerScale, as ConMIM's have.
    scaled = {"layer_scale": 0.1} if any(".gamma_" in name for name in stored) else {}
    config = model_size(size, **{**scaled, **fields})
    encoder = build_method(method, config).encoder
    wanted, prefix = encoder.state_dict(), "encoder."
    try:
        renamed = rename(stored)
    except KeyError as error:
        raise ValueError(f"an official {method} checkpoint must hold {error}; {path} does not.") from error
    found = {name.removeprefix(prefix): value for name, value in renamed.items() if name.startswith(prefix)}
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


def _mae(state: State) -> State:
    """MAE: timm names for the encoder; `decoder_x` and `mask_token` belong to the decoder."""
    ours: State = {}
    for name, value in state.items():
        if name == "mask_token" or name.startswith("decoder_"):
            ours["decoder." + name.removeprefix("decoder_")] = value
        else:
            ours["encoder." + name] = value
    return ours


def _simmim(state: State) -> State:
    """SimMIM: the encoder keeps its names but for Swin's; the head's rows are reordered."""
    swin = any(".layers." in name for name in state)
    ours: State = {}
    for name, value in state.items():
        if name == "decoder.0.weight":
            ours["head.weight"] = _channel_last(value.flatten(1))
        elif name == "decoder.0.bias":
            ours["head.bias"] = _channel_last(value)
        elif not name.endswith(("attn_mask", "relative_position_index")):  # computed from the size
            renamed = name
            if swin and name != "encoder.mask_token":
                # timm has a stage's downsampling at the start of the next stage.
                renamed = re.sub(r"layers\.(\d+)\.down", lambda found: f"layers.{int(found[1]) + 1}.down", name)
                renamed = renamed.replace("encoder.", "encoder.trunk.", 1)
            ours[renamed] = value
    return ours


def _channel_last(rows: Tensor) -> Tensor:
    """Reorder output rows from PixelShuffle's (channel, row, column) to the (row, column, channel) of a patch."""
    return rows.view(3, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def _clmae(state: State) -> State:
    """CL-MAE: MAE's names and a masking network; its position is frozen at zero, so it is dropped."""
    ours = _mae({name: value for name, value in state.items() if not name.startswith("masking_net.")})
    for name, value in state.items():
        part = name.removeprefix("masking_net.").replace("mlp_head.0.", "norm.").replace("mlp_head.1.", "head.")
        if name.startswith("masking_net.") and part != "pos_embed":
            ours[f"masker.{part}"] = value
    return ours


def _bootmae(state: State) -> State:
    """BootMAE: names of the second decoder end in _1, biases are fused, the teacher starts as the encoder."""
    parts = dict(decode_blocks="blocks", decode_norm="norm", down="embed", mask_token="mask_token", lm_head="pred")  # noqa: S106
    ours: State = {}
    for name, value in _fuse_biases(state).items():
        head, _, rest = name.partition(".")
        part = parts.get(head.removesuffix("_1"))
        if name == "de_pos_embed":
            renamed = "pixel_decoder.pos_embed"
        elif part is None:
            renamed = f"encoder.{name}"
        else:
            decoder = "feature_decoder" if head.endswith("_1") else "pixel_decoder"
            renamed = f"{decoder}.{part}.{rest}".rstrip(".").replace(".c_attn.", ".cross.")
        ours[renamed] = value
        if renamed.startswith("encoder."):
            ours[renamed.replace("encoder.", "teacher.", 1)] = value
    # The official feature decoder reads the encoder's positions; ours keeps a copy of them.
    ours["feature_decoder.pos_embed"] = state["pos_embed"]
    # The pixel head is a transposed convolution, [decoder width, channel, row, column]; ours is linear.
    weight = ours.pop("pixel_decoder.pred.proj.weight")
    ours["pixel_decoder.pred.weight"] = weight.permute(2, 3, 1, 0).flatten(0, 2)
    ours["pixel_decoder.pred.bias"] = ours.pop("pixel_decoder.pred.proj.bias").repeat(weight.shape[2] * weight.shape[3])
    return ours


def _fuse_biases(state: State) -> State:
    """Join q_bias, no key bias and v_bias into the bias of `qkv`, or of `q` and `kv` in cross-attention."""
    fused = dict(state)
    for name in [name for name in state if name.endswith(".q_bias")]:
        prefix = name.removesuffix("q_bias")
        q, v = fused.pop(name), fused.pop(prefix + "v_bias")
        if prefix + "kv.weight" in state:
            fused[prefix + "q.bias"], fused[prefix + "kv.bias"] = q, torch.cat([torch.zeros_like(v), v])
        else:
            fused[prefix + "qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return fused


def _conmim(state: State) -> State:
    """ConMIM: the encoder keeps its names, the projector becomes `projector`; the teacher starts as the student."""
    ours: State = {}
    for name, value in state.items():
        if name.startswith("lm_head.") or name.endswith("relative_position_index"):
            continue
        renamed = name.replace("projectors.", "projector.") if name.startswith("projectors.") else f"encoder.{name}"
        ours[renamed] = ours[f"teacher_{renamed}"] = value
    return ours


MAPS: dict[str, Callable[[State], State]] = {
    "mae": _mae,
    "simmim": _simmim,
    "clmae": _clmae,
    "bootmae": _bootmae,
    "conmim": _conmim,
}
