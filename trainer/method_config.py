"""The constants of the methods and add-ons, one frozen dataclass each; the papers' values are the defaults.

`trainer.config` nests them in `ModelConfig` and re-exports their names.
"""

from dataclasses import dataclass
from typing import Literal


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds: one line for each rule that a user can break."""
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


MTO_PRESETS: dict[str, MtoConfig] = {
    "recommended": MtoConfig(enabled=True),
    "paper": MtoConfig(enabled=True, similarity="raw"),
    # Eqs. 3 and 5 exactly as printed.
    "literal": MtoConfig(enabled=True, similarity="raw", rank_sign="paper", spa_reduction="sum"),
}


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
    """Share of the data set kept by a selection (rho), in (0, 1]; .3 over 200 epochs is the paper's budget of 37 %."""
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
