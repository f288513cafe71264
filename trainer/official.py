"""State dicts of the official implementations, renamed to ours, so that published checkpoints load.

Each method's map is one function: official name and tensor in, our names and tensors out. A checkpoint read from disk
must be safetensors; those published as pickles are converted once, elsewhere: nothing here unpickles.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from trainer.config import choose

State = dict[str, Tensor]


def from_official(method: str, state: Mapping[str, Tensor]) -> State:
    """Return the state dict of our method from the official one.

    Raises:
        ValueError: the method is unknown; the message gives the nearest name.
    """
    return choose(method, MAPS, "method")(dict(state))


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


MAPS: dict[str, Callable[[State], State]] = {"mae": _mae, "simmim": _simmim, "clmae": _clmae}
