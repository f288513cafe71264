"""Everything a training run is told: the model's shape, the method's constants and the optimisation recipe.

Frozen values that are checked when they are made. `ModelConfig` describes the network and its method; `TrainConfig`
nests it and adds the recipe. Constants of the papers are the defaults, with their origin beside them. `to_dict` and
`from_dict` are the JSON form kept in a run directory.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Masking = Literal["auto", "random", "block", "simmim"]
Precision = Literal["auto", "float32", "bf16", "float64"]


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds: one line for each rule that a person can break."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class MtoConfig:
    """Masked Token Optimization: add-on losses on the tokens of every layer (METHODS section 6)."""

    enabled: bool = False
    """Add the three losses to the method's own."""
    similarity: Literal["raw", "sqrt_d", "cosine"] = "sqrt_d"
    """Scale of the token products before the softmax: raw is the paper's, sqrt_d divides by sqrt(width), cosine
    divides by the norms.
    """
    cosine_temperature: float = 0.1
    """Temperature of the cosine similarity, above 0; used by `cosine` only."""
    rank_sign: Literal["decreasing", "paper"] = "decreasing"
    """Direction of the ranking loss: heterogeneity falls with depth (the paper's text), or Eq. 5 exactly as printed."""
    spa_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the sparsity loss over the visible rows of an image (Eq. 3 prints a sum)."""
    exclude_diagonal: bool = False
    """Leave a token's similarity with itself out of the sparsity loss."""
    detach_visible: bool = False
    """Stop the gradient of the losses at the visible tokens."""
    weight_spa: float = 1.0
    """Weight of the sparsity loss, >= 0."""
    weight_entropy: float = 1.0
    """Weight of the initial-heterogeneity loss, >= 0."""
    weight_rank: float = 1.0
    """Weight of the ranking loss, >= 0."""

    def __post_init__(self) -> None:
        weights = (self.weight_spa, self.weight_entropy, self.weight_rank)
        require(min(weights) >= 0, f"mto weights must be 0 or more; got {weights}.")
        require(self.cosine_temperature > 0, f"mto.cosine_temperature must be above 0; got {self.cosine_temperature}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PassConfig:
    """Patch-aware sample selection: the mask predictor and when it trains and scores (METHODS section 7)."""

    enabled: bool = False
    """Build the mask predictor and train it in the epochs that come before a selection."""
    score: Literal["pass", "bss"] = "pass"
    """What the sweep scores: patch-weighted loss under the predicted mask, or the mean loss under a random one."""
    predictor_depth: int = 8
    """Transformer blocks of the predictor (n_d)."""
    keep: float = 0.3
    """Share of the data set kept by a selection (rho), in (0, 1]."""
    full_epochs: int = 20
    """Epochs on all data before the first selection."""
    period: int = 20
    """Epochs between selections."""
    predictor_epochs: int = 3
    """Epochs before each selection in which the predictor trains (gamma)."""
    temperature: float = 0.1
    """Softmax temperature of the patch weights (tau), above 0."""
    detach_encoder: bool = False
    """Stop the predictor's gradient at the encoder."""

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, f"pass keep (rho) must be in (0, 1]; got {self.keep}.")
        require(self.temperature > 0, f"pass temperature must be above 0; got {self.temperature}.")
        require(self.period >= 1, f"pass period must be 1 epoch or more; got {self.period}.")
        require(
            0 <= self.predictor_epochs <= self.period,
            f"pass predictor_epochs must be within one period ({self.period} epochs); got {self.predictor_epochs}.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClmaeConfig:
    """Curriculum-learned masking: the masking network and its four losses (METHODS section 5)."""

    masker_depth: int = 5
    """Transformer blocks of the masking network."""
    masker_heads: int = 4
    """Attention heads of the masking network."""
    curriculum: Literal["linear", "literal"] = "linear"
    """Curriculum factor from +1 to -1: one line over the run, or the official two-piece formula by epoch."""
    masker_every: int = 1
    """Train the masking network every this many steps, 1 or more."""
    weight_gauss: float = 1.0
    """Weight of the binarisation loss, >= 0."""
    weight_kl: float = 25.6
    """Weight of the mean KL divergence to the keep ratio; the official sum over 256 images times 0.1."""
    kl_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the KL term over the batch; the official code sums."""
    weight_diversity: float = 2.0
    """Weight of the diversity loss, >= 0."""

    def __post_init__(self) -> None:
        require(self.masker_every >= 1, f"clmae.masker_every must be 1 step or more; got {self.masker_every}.")
        weights = (self.weight_gauss, self.weight_kl, self.weight_diversity)
        require(min(weights) >= 0, f"clmae weights must be 0 or more; got {weights}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConmimConfig:
    """Contrastive masked image modeling (METHODS section 4)."""

    hidden: int = 4096
    """Width of the projector's hidden layers."""
    projection: int = 256
    """Width of the projected tokens."""
    temperature: float = 0.1
    """Softmax temperature of the contrast, above 0."""
    momentum: float = 0.996
    """Teacher's momentum at the start; it rises to 1 along a cosine."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"conmim.temperature must be above 0; got {self.temperature}.")
        require(0 <= self.momentum <= 1, f"conmim.momentum must be in [0, 1]; got {self.momentum}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class BootmaeConfig:
    """Bootstrapped MAE (METHODS section 3)."""

    decoder_depth: int = 2
    """Blocks of each of the two decoders."""
    feature_weight: float = 1.0
    """Weight of the feature loss after its ramp (the ramp reaches it after a quarter of the run)."""
    dynamic_momentum: bool = True
    """Let the teacher's momentum rise to .99999 after epoch 100 (Base); otherwise it stays at .9999 (Large)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinConfig:
    """Swin encoder of SimMIM (METHODS section 2); used when `ModelConfig.encoder` is "swin"."""

    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each stage; the image is halved between stages."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window: int = 6
    """Side of the attention window, in tokens."""

    def __post_init__(self) -> None:
        require(
            len(self.depths) == len(self.heads),
            f"swin depths and heads must have one entry a stage; got {len(self.depths)} and {len(self.heads)}.",
        )


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
    """Share of the patches that is hidden, in (0, 1)."""
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
        near = max(round(size / patch), 1) * patch if patch else 0
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
        require(
            0 < self.num_visible < self.num_patches,
            f"mask_ratio must leave at least one visible and one masked patch of {self.num_patches}; "
            f"{self.mask_ratio} leaves {self.num_visible} visible. Choose another mask_ratio or a smaller patch_size.",
        )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
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
    """Steps of one selection window; scores are reported when it ends. The same as the selection's."""
    epoch_steps: int = 0
    """Steps of one pass over the data, for schedules that count epochs; 0 takes a hundredth of the run."""
    seed: int = 0
    """Seed of the initial weights, the masks and everything else that is random in a step."""

    base_lr: float = 1.5e-4
    """Peak learning rate for a batch of lr_batch images."""
    lr_batch: int = 256
    """Batch that base_lr is stated for (linear scaling); 0 takes base_lr as the rate itself."""
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
    """Steps between lines of metrics.jsonl; the device is waited for only then."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one at the end only."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept, 1 or more; the best one is kept beside them."""
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


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values; `from_dict` reads it back."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a config dataclass from plain values, nested ones included.

    Raises:
        ValueError: a field is unknown (the nearest name is given) or breaks a rule.
    """
    hints = typing.get_type_hints(kind)
    known: dict[str, Any] = {}
    for name, value in values.items():
        choose(name, hints, f"a field of {kind.__name__}")
        known[name] = _convert(hints[name], value)
    return kind(**known)


def _convert(hint: Any, value: Any) -> Any:
    """Turn JSON's lists into tuples and its objects into dataclasses where the field's type says so."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, hint), value)
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(value)
    if origin in (typing.Union, types.UnionType) and isinstance(value, list):
        return tuple(value)
    return value
