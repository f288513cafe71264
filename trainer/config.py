"""The configuration of a training run: the model's shape, the method's constants and the optimisation recipe.

Frozen values, checked when they are made; no torch is imported. `ModelConfig` describes the network and its method;
`TrainConfig` nests it and adds the recipe. Constants of the papers are the defaults, with their origin beside them.
A run directory keeps `dataclasses.asdict` of it as JSON, which `from_dict` reads.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from trainer.method_config import (
    MTO_PRESETS,
    BootmaeConfig,
    ClmaeConfig,
    ConmimConfig,
    MtoConfig,
    PassConfig,
    SwinConfig,
    require,
)

T = TypeVar("T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Masking = Literal["auto", "random", "block", "simmim"]
Precision = Literal["auto", "float32", "bf16", "float64"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network's shape and the constants of its method."""

    image_size: int = 224
    """Side of the square input, in pixels; a multiple of patch_size."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    encoder: Literal["vit", "swin"] = "vit"
    """Encoder family; swin is for simmim."""
    width: int = 768
    """Token width of the encoder (of the first stage for swin); a multiple of heads, and of 4."""
    depth: int = 12
    """Transformer blocks of the encoder."""
    heads: int = 12
    """Attention heads of the encoder."""
    mlp_ratio: float = 4.0
    """Hidden width of an MLP divided by its input width."""
    drop_path: float = 0.0
    """Stochastic depth of the last encoder block, in [0, 1); it grows linearly from 0 at the first."""
    layer_scale: float = 0.0
    """Initial LayerScale of the encoder blocks; 0 means none."""
    decoder_width: int = 512
    """Token width of the decoder."""
    decoder_depth: int = 8
    """Transformer blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder."""
    masking: Masking = "auto"
    """How the masked patches are chosen; auto is the method's own way. clmae learns its masks."""
    mask_ratio: float = 0.75
    """Share of hidden patches, in (0, 1)."""
    norm_pix: bool = True
    """Standardise each target patch by its own mean and variance (mae, clmae)."""
    swin: SwinConfig = field(default_factory=SwinConfig)
    """Swin encoder, when encoder is "swin"."""
    mto: MtoConfig = field(default_factory=MtoConfig)
    """Masked Token Optimization, an add-on for every method."""
    pass_: PassConfig = field(default_factory=PassConfig)
    """Patch-aware sample selection, for mae and simmim."""
    clmae: ClmaeConfig = field(default_factory=ClmaeConfig)
    """Constants of clmae."""
    conmim: ConmimConfig = field(default_factory=ConmimConfig)
    """Constants of conmim."""
    bootmae: BootmaeConfig = field(default_factory=BootmaeConfig)
    """Constants of bootmae."""

    def __post_init__(self) -> None:
        size, patch = self.image_size, self.patch_size
        require(patch >= 1, f"patch_size must be 1 pixel or more; got {patch}.")
        near = max(round(size / patch), 1) * patch
        require(size % patch == 0, f"image_size must be a multiple of patch_size ({patch}); got {size}. Try {near}.")
        require(self.width % self.heads == 0, f"width must be a multiple of heads ({self.heads}); got {self.width}.")
        require(self.width % 4 == 0, f"width must be a multiple of 4 for sin-cos positions; got {self.width}.")
        require(
            self.decoder_width % self.decoder_heads == 0 and self.decoder_width % 4 == 0,
            f"decoder_width must be a multiple of decoder_heads ({self.decoder_heads}) and of 4; got "
            f"{self.decoder_width}.",
        )
        require(0 <= self.drop_path < 1, f"drop_path must be in [0, 1); got {self.drop_path}.")
        require(0 < self.mask_ratio < 1, f"mask_ratio must be in (0, 1); got {self.mask_ratio}.")
        # A ratio inside (0, 1) can still round to no patch where an image has few.
        require(
            0 < self.num_visible < self.num_patches,
            f"mask_ratio must leave at least one visible and one masked patch of {self.num_patches}; "
            f"{self.mask_ratio} leaves {self.num_visible} visible. Choose another mask_ratio or a smaller patch_size.",
        )

    @property
    def grid(self) -> int:
        """Patches along one side of the image; the tokens of a ViT form a grid of this side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def num_visible(self) -> int:
        """Patches that random masking leaves visible: int(N * (1 - ratio)), as the official MAE rounds it."""
        return int(self.num_patches * (1 - self.mask_ratio))


SIZES: dict[str, dict[str, int]] = {
    # MAE, arXiv:2111.06377, and timm's vit_small; the decoder is the same for all.
    "vit_s": {"patch_size": 16, "width": 384, "depth": 12, "heads": 6},
    "vit_b": {"patch_size": 16, "width": 768, "depth": 12, "heads": 12},
    "vit_l": {"patch_size": 16, "width": 1024, "depth": 24, "heads": 16},
    "vit_h": {"patch_size": 14, "width": 1280, "depth": 32, "heads": 16},
    # For 32-pixel images and for machines without a GPU.
    "tiny": {"image_size": 32, "patch_size": 4, "width": 128, "depth": 4, "heads": 4}
    | {"decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4},
    "cifar": {"image_size": 32, "patch_size": 4, "width": 192, "depth": 12, "heads": 3}
    | {"decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4},
}


def model_size(name: str, **fields: Any) -> ModelConfig:
    """Return the named size with some fields changed, e.g. `model_size("vit_b", mask_ratio=0.6)`.

    Raises:
        ValueError: the size or a field is unknown; the message names the nearest.
    """
    return from_dict(ModelConfig, {**choose(name, SIZES, "model size"), **fields})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    method: str = "mae"
    """Name in `trainer.METHODS`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    total_steps: int
    """Optimizer steps of the run."""
    global_batch: int
    """Images of one optimizer step over all ranks."""
    accumulation_steps: int = 1
    """Forward and backward passes that make one optimizer step on a rank."""
    window_steps: int = 16
    """Steps of one selection window; scores are reported when it ends. Must equal the selection's."""
    epoch_steps: int = 0
    """Steps of one pass over the data, for schedules that count epochs; 0 takes a hundredth of the run."""
    seed: int = 0
    """Seed of the initial weights, the masks and all other random numbers of a step."""

    base_lr: float = 1.5e-4
    """Peak learning rate for a batch of lr_batch images."""
    lr_batch: int = 256
    """Batch size that base_lr refers to (linear scaling); 0 takes base_lr as the rate itself."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine, absolute."""
    warmup_steps: int = 0
    """Steps of linear warm-up from warmup_lr."""
    warmup_lr: float = 0.0
    """Learning rate at step 0 when there is a warm-up, absolute."""
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    milestones: tuple[float, ...] = (0.875,)
    """Shares of the run after which `multistep` divides the rate by ten (SimMIM: epoch 700 of 800)."""
    weight_decay: float = 0.05
    """AdamW weight decay of matrices; vectors and biases have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moments."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 means no clipping."""
    layer_decay: float = 1.0
    """Factor on the learning rate for each encoder layer further from the head, in (0, 1]."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the weights with this decay; 0 means none."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the pixels by channel, in [0, 1], subtracted on the device."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the pixels by channel, above 0."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: the rank's GPU when there is one."""
    precision: Precision = "auto"
    """`bf16` autocasts; `auto` is bf16 where the device computes it natively and float32 elsewhere."""
    compile_blocks: Literal["auto", "on", "off"] = "auto"
    """Compile the transformer blocks with torch.compile; `auto` does so on a GPU."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """How ranks share the model: a replica each, or FSDP2 shards (ViT-H)."""
    deterministic: bool = False
    """Use deterministic kernels only; the CPU is bit-exact between runs either way."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl; only then does the loop wait for the device."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one at the end only."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept, 1 or more; the best one is kept as well."""
    profile_steps: int = 0
    """Record a trace of this many steps into the run directory, after ten steps; 0 means none."""

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "global_batch",
            "accumulation_steps",
            "window_steps",
            "log_every",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more; got {getattr(self, name)}.")
        for name in ("checkpoint_every", "profile_steps", "epoch_steps", "lr_batch", "warmup_steps", "clip_norm"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more; got {getattr(self, name)}.")
        require(
            self.warmup_steps < self.total_steps,
            f"warmup_steps must be below total_steps ({self.total_steps}); got {self.warmup_steps}.",
        )
        require(self.base_lr > 0, f"base_lr must be above 0; got {self.base_lr}.")
        require(0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1]; got {self.layer_decay}.")
        require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1); got {self.ema_decay}.")
        require(min(self.std) > 0, f"std must be above 0 in every channel; got {self.std}.")

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up."""
        return self.base_lr * (self.global_batch / self.lr_batch if self.lr_batch else 1.0)


def choose(name: str, choices: Mapping[str, T], what: str) -> T:
    """Look a name up in a registry.

    Raises:
        ValueError: the name is unknown; the message lists the choices and the nearest one.
    """
    if name in choices:
        return choices[name]
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} must be one of {', '.join(choices)}; got {name!r}.{hint}")


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a config dataclass from `dataclasses.asdict` of one, or from the same after a way through JSON.

    Raises:
        ValueError: a field is unknown (the nearest name is given) or breaks a rule.
    """
    hints = typing.get_type_hints(kind)
    known: dict[str, Any] = {}
    for name, value in values.items():
        hint = choose(name, hints, f"a field of {kind.__name__}")
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = from_dict(typing.cast(type, hint), value)  # noqa: PLW2901
        # JSON has no tuples: a list stands for one wherever the type allows a tuple (no field takes a list).
        elif isinstance(value, list) and typing.get_origin(hint) in (tuple, typing.Union, types.UnionType):
            value = tuple(value)  # noqa: PLW2901
        known[name] = value
    return kind(**known)


__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MTO_PRESETS",
    "SIZES",
    "BootmaeConfig",
    "ClmaeConfig",
    "ConmimConfig",
    "Masking",
    "ModelConfig",
    "MtoConfig",
    "PassConfig",
    "Precision",
    "SwinConfig",
    "TrainConfig",
    "choose",
    "from_dict",
    "model_size",
    "require",
]
