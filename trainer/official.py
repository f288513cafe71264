"""State dicts of the official implementations, renamed to ours, so that published checkpoints load.

Each method's map is one function: official name and tensor in, our names and tensors out. A checkpoint read from disk
must be safetensors; those published as pickles are converted once, elsewhere: nothing here unpickles.
"""

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


MAPS: dict[str, Callable[[State], State]] = {"mae": _mae}
