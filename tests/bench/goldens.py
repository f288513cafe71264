"""How far our losses are from the official implementations', method by method: `python -m tests.bench.goldens`.

Prints one line a number and exits 1 when an error is above the tolerance; `golden_errors` gives the rows. The official
code was run once in float64 on weights and images that a rule makes from parameter names; its numbers are below. The
same rule fills our methods through the map of official names (`trainer.record.official`), so an error is that of the
whole path: names, forward pass, loss. MTO and PASS have no official code, so there is nothing to compare them to.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from trainer.config import ClmaeConfig, ConmimConfig, ModelConfig, SwinConfig
from trainer.masking import Mask, from_mask
from trainer.methods import build_method
from trainer.methods.base import Method
from trainer.record.official import encoder_state

TOLERANCE = 1e-6  # sin-cos positions are float32 in every official implementation
OFFICIAL: dict[str, dict[str, float]] = {
    "mae": {"loss": 1.510015522774828, "gradient norm": 7.257924477032495},
    "mae norm_pix": {"loss": 2.0127546825016975, "gradient norm": 7.255408966965592},
    "simmim vit": {"loss": 1.4529747480274384},
    "simmim swin": {"loss": 0.6674640202111518},
    "bootmae": {"pixel loss": 1.5836376565890566, "feature loss": 3.2595336972246276},
    "conmim": {"loss": 4.791666148198501},
    "clmae": {
        "model loss": 1.5505796769258828,
        "recon": 1.5089153795498513,
        "gauss": 0.17256067272387424,
        "kl": 0.044584601490641085,
        "diversity": 1.9993598432999093,
    },
}
SMALL: dict[str, Any] = {"width": 48, "depth": 2, "heads": 3}
DECODER: dict[str, Any] = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 4}


def golden_errors() -> list[dict[str, Any]]:
    """Return one row a number: method, what, official, ours, error (absolute)."""
    rows = []
    for name, official in OFFICIAL.items():
        ours = CASES[name]()
        rows += [
            {"method": name, "what": what, "official": value, "ours": ours[what], "error": abs(ours[what] - value)}
            for what, value in official.items()
        ]
    return rows


class GoldenRandomness:
    """Gives the uniforms that the official numbers were made with."""

    def uniform(self, purpose: str, rows: int, columns: int, *, like: Tensor | None = None) -> Tensor:
        """Return the fractions of a large sine, [rows, columns]."""
        i = torch.arange(rows * columns, dtype=torch.float64)
        values = torch.sin(12.9898 * i + 78.233) * 43758.5453
        return (values - values.floor()).view(rows, columns)


def golden_images(batch: int, size: int) -> Tensor:
    """Return the images, float64[batch, 3, size, size]."""
    a = torch.arange(batch * 3 * size * size, dtype=torch.float64)
    return (torch.sin(0.013 * a) + 0.3 * torch.sin(0.9 * a.sqrt())).view(batch, 3, size, size)


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a weight: a sine whose phase is the CRC-32 of the official parameter name."""
    values = torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + crc32(name.encode()) % 997)
    if len(shape) >= 2:
        values = 0.08 * values
    elif name.endswith(".weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.02 * values
    return values.view(shape)


def fill_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values for an official state dict; positions, LayerScales and running statistics stay as they are."""
    kept = ("pos_embed", "gamma_", "running_")
    return {
        name: value
        if any(part in name for part in kept) or not value.is_floating_point()
        else fill(name, tuple(value.shape))
        for name, value in state.items()
    }


def golden_mask(scale: int) -> Mask:
    """Return the two masks of SimMIM and ConMIM, three of four blocks of `scale` x `scale` patches each."""
    coarse = torch.tensor([[[1, 0], [1, 1]], [[0, 1], [1, 1]]]).float()
    return from_mask(coarse.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1), 3 * scale**2)


def golden_mae(*, norm_pix: bool) -> Any:
    """Return the filled MAE."""
    method = _build("mae", ModelConfig(image_size=32, patch_size=8, norm_pix=norm_pix, **SMALL, **DECODER))
    return _fill(method, "mae", {_mae_name(name): value for name, value in method.state_dict().items()})


def golden_clmae() -> Any:
    """Return the filled CL-MAE; its masking network has two of five blocks."""
    literal = ClmaeConfig(masker_depth=2, weight_kl=0.1, kl_reduction="sum", curriculum="literal")
    shape = {**SMALL, **DECODER}
    method = _build("clmae", ModelConfig(image_size=32, patch_size=8, norm_pix=False, clmae=literal, **shape))
    official = {}
    for name, value in method.state_dict().items():
        part = name.removeprefix("masker.").replace("head.", "mlp_head.1.")
        part = "mlp_head.0." + part.removeprefix("norm.") if part.startswith("norm.") else part
        official[f"masking_net.{part}" if name.startswith("masker.") else _mae_name(name)] = value
    return _fill(method, "clmae", official)


def golden_simmim(*, swin: bool) -> Any:
    """Return the filled SimMIM with a ViT or a Swin."""
    if swin:
        stages = SwinConfig(depths=(2, 2, 2, 2), heads=(2, 2, 4, 4), window=4)
        config = ModelConfig(
            image_size=64, patch_size=4, width=24, heads=2, encoder="swin", swin=stages, mask_ratio=0.6
        )
    else:
        config = ModelConfig(image_size=64, patch_size=16, layer_scale=0.1, mask_ratio=0.6, **SMALL)
    method = _build("simmim", config).eval()
    official = {}
    for name, value in method.state_dict().items():
        if name.startswith("head."):
            shape = (*value.shape, 1, 1) if value.ndim == 2 else value.shape
            official[name.replace("head.", "decoder.0.")] = value.view(shape)
        else:
            moved = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
            official[moved.replace("trunk.", "")] = value
    return _fill(method, "simmim", official)


def golden_conmim() -> Any:
    """Return the filled ConMIM; its teacher is its student."""
    projector = ConmimConfig(hidden=64, projection=16)
    method = _build("conmim", ModelConfig(image_size=64, patch_size=16, layer_scale=0.1, conmim=projector, **SMALL))
    official = {
        name.removeprefix("encoder.").replace("projector.", "projectors."): value
        for name, value in method.state_dict().items()
        if not name.startswith("teacher_")
    }
    return _fill(method, "conmim", official)


def golden_bootmae() -> Any:
    """Return the filled BootMAE."""
    shape = {**SMALL, "heads": 4, "decoder_width": 32, "decoder_heads": 4}
    method = _build("bootmae", ModelConfig(image_size=64, patch_size=16, masking="random", **shape))
    positions = {"pos_embed": method.encoder.pos_embed.data, "de_pos_embed": method.pixel_decoder.pos_embed.data}
    return _fill(method, "bootmae", bootmae_official(positions))


def bootmae_official(positions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the official names and shapes of a BootMAE 48 wide: its biases are in parts."""
    width, depth, decoder, heads, patch = 48, 2, 32, 4, 16
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width)}
    shapes |= {"mask_token": (1, 1, decoder), "mask_token_1": (1, 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for layer in range(depth):
        shapes |= _official_block(f"blocks.{layer}", width, heads)
        shapes |= _official_block(f"decode_blocks.{layer}", decoder, heads, context=width)
        shapes |= _official_block(f"decode_blocks_1.{layer}", width, heads, context=width)
    for name, size in (("norm", width), ("decode_norm", decoder), ("decode_norm_1", width)):
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    for name, out in (("down", decoder), ("down_1", width), ("lm_head_1", width)):
        shapes |= {f"{name}.weight": (out, width), f"{name}.bias": (out,)}
    shapes |= {"lm_head.proj.weight": (decoder, 3, patch, patch), "lm_head.proj.bias": (3,)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | dict(positions)


def _official_block(name: str, size: int, heads: int, *, context: int = 0) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a BootMAE block, with cross-attention to tokens of width `context` if it has any."""
    inner = size // heads * heads
    norms = {"norm1": size, "norm2": size} | ({"norm3": size, "norm4": context} if context else {})
    matrices = {"attn.qkv": (3 * inner, size), "attn.proj": (size, inner)}
    matrices |= {"mlp.fc1": (4 * size, size), "mlp.fc2": (size, 4 * size)}
    biases = {"attn.q_bias": inner, "attn.v_bias": inner, "attn.proj.bias": size}
    biases |= {"mlp.fc1.bias": 4 * size, "mlp.fc2.bias": size}
    if context:
        matrices |= {"c_attn.q": (inner, size), "c_attn.kv": (2 * inner, context), "c_attn.proj": (size, inner)}
        biases |= {"c_attn.q_bias": inner, "c_attn.v_bias": inner, "c_attn.proj.bias": size}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.{part}.weight": shape for part, shape in matrices.items()}
    shapes |= {f"{name}.{part}": (count,) for part, count in biases.items()}
    return shapes | {f"{name}.{part}.{kind}": (count,) for part, count in norms.items() for kind in ("weight", "bias")}


def _mae(*, norm_pix: bool) -> dict[str, float]:
    method = golden_mae(norm_pix=norm_pix)
    loss = method(golden_images(2, 32), GoldenRandomness()).total
    loss.backward()
    squares = [p.grad.square().sum() for p in method.parameters() if p.grad is not None]
    return {"loss": loss.item(), "gradient norm": torch.stack(squares).sum().sqrt().item()}


def _simmim(*, swin: bool) -> dict[str, float]:
    mask = golden_mask(8 if swin else 2)
    return {"loss": golden_simmim(swin=swin).reconstruct(golden_images(2, 64), mask).total.item()}


def _bootmae() -> dict[str, float]:
    parts = golden_bootmae()(golden_images(2, 64), GoldenRandomness()).parts
    return {"pixel loss": parts["pixel"].item(), "feature loss": parts["feature"].item()}


def _conmim() -> dict[str, float]:
    images = golden_images(2, 64)
    return {"loss": golden_conmim().contrast(images, images.flip(1) * 0.9, golden_mask(2)).total.item()}


def _clmae() -> dict[str, float]:
    method, images, randomness = golden_clmae(), golden_images(3, 32), GoldenRandomness()
    parts = method(images, randomness, "masker").parts
    terms = {name: parts[name].item() for name in ("recon", "gauss", "kl", "diversity")}
    return {"model loss": method(images, randomness, "model").total.item(), **terms}


CASES: dict[str, Callable[[], dict[str, float]]] = {
    "mae": lambda: _mae(norm_pix=False),
    "mae norm_pix": lambda: _mae(norm_pix=True),
    "simmim vit": lambda: _simmim(swin=False),
    "simmim swin": lambda: _simmim(swin=True),
    "bootmae": _bootmae,
    "conmim": _conmim,
    "clmae": _clmae,
}


def _build(name: str, config: ModelConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        return build_method(name, config).double()


def _fill(method: Method, name: str, official: Mapping[str, Tensor]) -> Method:
    state = fill_state(official)
    ours = {f"encoder.{part}": value for part, value in encoder_state(name, state).items()}
    method.load_state_dict(ours | OTHERS[name](state))
    return method


def _other_mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MAE: `decoder_x` and `mask_token` belong to the decoder."""
    return {
        "decoder." + name.removeprefix("decoder_"): value
        for name, value in state.items()
        if name == "mask_token" or name.startswith("decoder_")
    }


def _other_simmim(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SimMIM: the head's rows, (channel, row, column) for PixelShuffle, become (row, column, channel) of a patch."""
    weight, bias = state["decoder.0.weight"].flatten(1), state["decoder.0.bias"]
    return {
        f"head.{name}": rows.view(3, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)
        for name, rows in (("weight", weight), ("bias", bias))
    }


def _other_clmae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CL-MAE: MAE's decoder and a masking network; its position is frozen at zero, so it is dropped."""
    ours = _other_mae(state)
    for name, value in state.items():
        part = name.removeprefix("masking_net.").replace("mlp_head.0.", "norm.").replace("mlp_head.1.", "head.")
        if name.startswith("masking_net.") and part != "pos_embed":
            ours[f"masker.{part}"] = value
    return ours


def _other_bootmae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BootMAE: names of the second decoder end in _1, biases are in parts, the teacher starts as the encoder."""
    parts = dict(decode_blocks="blocks", decode_norm="norm", down="embed", mask_token="mask_token", lm_head="pred")
    ours = {f"teacher.{name}": value for name, value in encoder_state("bootmae", dict(state)).items()}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        part = parts.get(head.removesuffix("_1"))
        if part is not None:
            decoder = "feature_decoder" if head.endswith("_1") else "pixel_decoder"
            ours[f"{decoder}.{part}.{rest}".rstrip(".").replace(".c_attn.", ".cross.")] = value
    for name in [name for name in ours if name.endswith(".q_bias")]:
        prefix = name.removesuffix("q_bias")
        q, v = ours.pop(name), ours.pop(prefix + "v_bias")
        if prefix + "kv.weight" in ours:
            ours[prefix + "q.bias"], ours[prefix + "kv.bias"] = q, torch.cat([torch.zeros_like(v), v])
        else:
            ours[prefix + "qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    ours["pixel_decoder.pos_embed"] = state["de_pos_embed"]
    # The official feature decoder reads the encoder's positions; ours keeps a copy of them.
    ours["feature_decoder.pos_embed"] = state["pos_embed"]
    # The pixel head is a transposed convolution, [decoder width, channel, row, column]; ours is linear.
    weight = ours.pop("pixel_decoder.pred.proj.weight")
    ours["pixel_decoder.pred.weight"] = weight.permute(2, 3, 1, 0).flatten(0, 2)
    ours["pixel_decoder.pred.bias"] = ours.pop("pixel_decoder.pred.proj.bias").repeat(weight.shape[2] * weight.shape[3])
    return ours


def _other_conmim(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ConMIM: the projector becomes `projector`; the teacher starts as the student."""
    ours = {f"teacher_encoder.{name}": value for name, value in encoder_state("conmim", dict(state)).items()}
    for name, value in state.items():
        if name.startswith("projectors."):
            renamed = name.replace("projectors.", "projector.")
            ours[renamed] = ours[f"teacher_{renamed}"] = value
    return ours


OTHERS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "mae": _other_mae,
    "simmim": _other_simmim,
    "clmae": _other_clmae,
    "bootmae": _other_bootmae,
    "conmim": _other_conmim,
}
"""What is beside the encoder in an official state dict, under our names, by method."""


def _mae_name(name: str) -> str:
    """Return the official name of a parameter of our MAE."""
    short = name.removeprefix("encoder.").replace("decoder.mask_token", "mask_token")
    return short.replace("decoder.", "decoder_")


def main() -> int:
    """Print the table; return 1 when an error is above the tolerance."""
    rows = golden_errors()
    for row in rows:
        print(f"{row['method']:14} {row['what']:14} {row['official']:20.16f} {row['ours']:20.16f} {row['error']:.1e}")
    worst = max(row["error"] for row in rows)
    print(f"largest error {worst:.1e}, tolerance {TOLERANCE:g} (float64)")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
