"""State dicts of the official implementations, renamed to ours, so that published checkpoints load.

Each method's map is one function: official name and tensor in, our names and tensors out. A checkpoint read from disk
must be safetensors; those published as pickles are converted once, elsewhere: nothing here unpickles.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.config import ModelConfig, choose, require
from trainer.methods import build_method
from trainer.methods.base import Method

State = dict[str, Tensor]


def from_official(method: str, state: Mapping[str, Tensor]) -> State:
    """Return the state dict of our method from the official one.

    Raises:
        ValueError: the method is unknown; the message gives the nearest name.
    """
    return choose(method, MAPS, "method")(dict(state))


def load_official(method: str, path: str | Path, config: ModelConfig) -> Method:
    """Build a method with the weights of an official checkpoint that was converted to safetensors.

    Args:
        method: name in `trainer.METHODS`.
        path: safetensors file with the official names.
        config: shape of the network, e.g. `model_size("vit_b")`.

    Raises:
        ValueError: it is no safetensors file, or names or shapes do not fit; the first that do not are named.
    """
    module = build_method(method, config)
    try:
        stored = load_file(path)
    except SafetensorError as err:
        raise ValueError(f"an official checkpoint must be a safetensors file; {path} is none ({err}).") from err
    found, wanted = from_official(method, stored), module.state_dict()
    wrong = sorted(
        {name for name in wanted if name not in found or found[name].shape != wanted[name].shape}
        | (found.keys() - wanted.keys())
    )
    require(
        not wrong,
        f"an official {method} checkpoint must have the config's names and shapes; {path} differs in {len(wrong)}, "
        "first "
        f"{', '.join(wrong[:3])}. Choose the size that it was trained with.",
    )
    module.load_state_dict(found)
    return module


def _mae(state: State) -> State:
    """MAE: timm names for the encoder; `decoder_x` and `mask_token` belong to the decoder."""
    return {_mae_name(name): value for name, value in state.items()}


def _mae_name(name: str) -> str:
    if name == "mask_token":
        return "decoder.mask_token"
    if name.startswith("decoder_"):
        return f"decoder.{name.removeprefix('decoder_')}"
    return f"encoder.{name}"


def _simmim(state: State) -> State:
    """SimMIM: the encoder keeps its names but for Swin's downsampling; the head predicts patches in our order."""
    swin = any(".layers." in name for name in state)
    ours: State = {}
    for name, value in state.items():
        if name == "decoder.0.weight":
            ours["head.weight"] = _channel_last(value.flatten(1))
        elif name == "decoder.0.bias":
            ours["head.bias"] = _channel_last(value)
        elif not name.endswith(("attn_mask", "relative_position_index")):
            ours[_swin_name(name) if swin else name] = value
    return ours


def _swin_name(name: str) -> str:
    """Move a stage's downsampling to the stage after it, where timm has it."""
    if name == "encoder.mask_token":
        return name
    name = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
    return name.replace("encoder.", "encoder.trunk.", 1)


def _channel_last(rows: Tensor) -> Tensor:
    """Reorder output rows from PixelShuffle's (channel, row, column) to the (row, column, channel) of a patch."""
    return rows.view(3, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def _clmae(state: State) -> State:
    """CL-MAE: MAE's names and a masking network, whose frozen position is zero and is dropped."""
    ours = _mae({name: value for name, value in state.items() if not name.startswith("masking_net.")})
    for name, value in state.items():
        part = name.removeprefix("masking_net.").replace("mlp_head.0.", "norm.").replace("mlp_head.1.", "head.")
        if name.startswith("masking_net.") and part != "pos_embed":
            ours[f"masker.{part}"] = value
    return ours


def _bootmae(state: State) -> State:
    """BootMAE: names of the second decoder end in _1, biases are fused, the teacher starts as the encoder."""
    ours: State = {}
    for name, value in _fuse_biases(state).items():
        renamed = _bootmae_name(name)
        ours[renamed] = value
        if renamed.startswith("encoder."):
            ours[renamed.replace("encoder.", "teacher.", 1)] = value
    ours["feature_decoder.pos_embed"] = state["pos_embed"]
    weight = ours.pop(
        "pixel_decoder.pred.proj.weight"
    )  # of a transposed convolution: [decoder width, channel, row, column]
    ours["pixel_decoder.pred.weight"] = weight.permute(2, 3, 1, 0).flatten(0, 2)
    ours["pixel_decoder.pred.bias"] = ours.pop("pixel_decoder.pred.proj.bias").repeat(weight.shape[2] * weight.shape[3])
    return ours


def _bootmae_name(name: str) -> str:
    """Return our name of a BootMAE parameter."""
    parts = {
        "decode_blocks": "blocks",
        "decode_norm": "norm",
        "down": "embed",
        "mask_token": "mask_token",
        "lm_head": "pred",
    }
    if name == "de_pos_embed":
        return "pixel_decoder.pos_embed"
    head, _, rest = name.partition(".")
    decoder = "feature_decoder" if head.endswith("_1") else "pixel_decoder"
    part = parts.get(head.removesuffix("_1"))
    if part is None:
        return f"encoder.{name}"
    return f"{decoder}.{part}.{rest}".rstrip(".").replace(".c_attn.", ".cross.")


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
