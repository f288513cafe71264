"""Encoders out of runs: loaded to be evaluated, or written as timm models for other programs.

`export_timm` writes two files: `encoder.safetensors`, a timm state dict, and `encoder.json`, the timm class and the
arguments that it loads into.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trainer.config import ModelConfig, TrainConfig, from_dict, require
from trainer.methods import build_method
from trainer.methods.base import Method
from trainer.models import beit, swin, vit
from trainer.record.checkpoint import load_checkpoint

Weights = Literal["encoder", "teacher", "average"]

TIMM_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "VisionTransformer": VisionTransformer,
    "Beit": Beit,
    "SwinTransformer": SwinTransformer,
}


def load_method(path: str | Path, *, averaged: bool = False) -> tuple[TrainConfig, Method]:
    """Load the trained method of a run directory (its newest checkpoint) or of one checkpoint, in eval mode on the CPU.

    `averaged` takes the moving average of the weights.

    Raises:
        CheckpointError: there is no intact checkpoint.
        ValueError: `averaged` is set and the run kept no average.
    """
    checkpoint = load_checkpoint(path)
    config = from_dict(TrainConfig, checkpoint.state["config"])
    require(
        not averaged or "ema" in checkpoint.tensors,
        f"averaged weights need a run with ema_decay above 0; {checkpoint.path} has none. Leave averaged out.",
    )
    method = build_method(config.method, config.model)
    # The average has the trained weights alone; buffers and teachers are those of the checkpoint.
    method.load_state_dict(checkpoint.tensors["model"] | (checkpoint.tensors["ema"] if averaged else {}))
    return config, method.eval()


def teacher_of(method: Method, name: str) -> nn.Module:
    """Return the teacher's encoder of a method of that name.

    Raises:
        ValueError: the method has no teacher.
    """
    for attribute in ("teacher", "teacher_encoder"):
        if isinstance(found := getattr(method, attribute, None), nn.Module):
            return found
    raise ValueError(f"a teacher needs a run of bootmae or conmim; this one is of {name}. Take its encoder.")


def export_timm(path: str | Path, out_dir: str | Path, *, weights: Weights = "encoder") -> Path:
    """Write the encoder of a run or checkpoint into `out_dir` as a timm state dict and return the path of its weights.

    It is the trained one, the method's teacher (ConMIM fine-tunes it), or the run's moving average.

    Raises:
        ValueError: the method has no teacher, or the run no average.
        CheckpointError: there is no intact checkpoint.
    """
    config, method = load_method(path, averaged=weights == "average")
    encoder = teacher_of(method, config.method) if weights == "teacher" else method.encoder
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    name, arguments = timm_arguments(encoder, config.model)
    description: dict[str, Any] = {"class": name, "arguments": arguments, "method": config.method}
    description |= {"mean": config.mean, "std": config.std}
    (out / "encoder.json").write_text(json.dumps(description, indent=1), "ascii")
    save_file({key: value.contiguous() for key, value in timm_state(encoder).items()}, out / "encoder.safetensors")
    return out / "encoder.safetensors"


def timm_state(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the encoder's weights under timm's names, ready for `load_state_dict` of the class in `timm_arguments`."""
    # Our encoders have timm's names but for mask tokens, which timm does not have; a Swin is kept as a part.
    source = encoder.trunk if isinstance(encoder, swin.SwinEncoder) else encoder
    return {name: value.detach() for name, value in source.state_dict().items() if name != "mask_token"}


def timm_arguments(encoder: nn.Module, config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return the name of the encoder's timm class and the arguments that build it.

    Raises:
        ValueError: timm has no such encoder.
    """
    common: dict[str, Any] = {"img_size": config.image_size, "patch_size": config.patch_size, "num_classes": 0}
    common |= {"embed_dim": config.width, "mlp_ratio": config.mlp_ratio}
    plain = {
        "depth": config.depth,
        "num_heads": config.heads,
        "init_values": config.layer_scale or None,
        "global_pool": "token",
    }
    if isinstance(encoder, vit.Encoder):
        return "VisionTransformer", common | plain
    if isinstance(encoder, beit.RelativeEncoder):
        return "Beit", common | plain | {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}
    require(isinstance(encoder, swin.SwinEncoder), f"timm must have the encoder's kind; got {type(encoder).__name__}.")
    stages = {"depths": config.swin.depths, "num_heads": config.swin.heads, "window_size": config.swin.window}
    return "SwinTransformer", common | stages | {"global_pool": ""}
