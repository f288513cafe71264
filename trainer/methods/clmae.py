"""Curriculum-learned masked autoencoder (Madan et al., WACV 2024; METHODS section 5).

A masking network gives each patch a keep-probability. Two updates alternate on the same batch, each with its own
optimizer:

- model: the masking network is frozen; the patches that it keeps with the highest probability are visible, the rest is
  an ordinary MAE step.
- masker: the autoencoder is frozen; all patches are encoded, each scaled by its probability, and the masking network
  follows curriculum * reconstruction + binarisation + ratio + diversity, with a curriculum factor from +1 (hide what is
  easy) to -1 (hide what is hard).

Shapes: B batch, N patches, D encoder width, P values of a patch.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import Mask, split_order, take, whole_image
from trainer.methods.losses import Losses, patch_errors
from trainer.methods.mae import Mae
from trainer.models.vit import patchify, run_blocks
from trainer.models.weights import init_xavier
from trainer.precision import wide
from trainer.progress import Progress
from trainer.randomness import StepRandomness
from trainer.ranks.collectives import gather_rows

GAUSS_SIGMA = 0.12  # official CL-MAE, width of the binarisation loss around 1/2
DIVERSITY_SCALE = 0.1  # official CL-MAE, scale of the distances between masks
MASKER_LAYER_NORM_EPS = 1e-5  # the masking network keeps torch's default
KEEP_TINY = 1e-7  # keeps the logarithms of the ratio loss finite


class Clmae(Mae):
    """MAE and the masking network that first helps, then opposes it."""

    phases = ("model", "masker")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.masker = MaskingNetwork(config)
        self.curriculum = 1.0

    def begin_step(self, progress: Progress) -> None:
        super().begin_step(progress)
        self.curriculum = curriculum_factor(progress, self.config.clmae.curriculum)

    def active_phases(self, progress: Progress) -> tuple[str, ...]:
        """Return both phases, or the model's alone between the masker's steps."""
        return self.phases if progress.step % self.config.clmae.masker_every == 0 else ("model",)

    def phase_parameters(self, phase: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the masking network's parameters, or all the others."""
        pairs = super().phase_parameters(phase)
        return (pair for pair in pairs if pair[0].startswith("masker.") == (phase == "masker"))

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        """Return the losses of one of the two updates; neither draws a random number."""
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        if phase == "masker":
            return self._masker_losses(patches_BNP)
        tokens_BND = self.encoder.embed_patches(patches_BNP)
        # The choice of the visible patches has no gradient: the masking network learns in its own update alone.
        with torch.no_grad():
            mask = self.learned_mask(self.masker(tokens_BND))
        return self.decode(self.encoder.encode(take(tokens_BND, mask.visible_BV)), patches_BNP, mask)

    def keep_probability(self, images_BCHW: Tensor) -> Tensor:
        """Return the masking network's keep-probabilities of normalised images, [B, N] in (0, 1)."""
        tokens_BND = self.encoder.embed_patches(patchify(images_BCHW, self.config.patch_size))
        probability_BN: Tensor = self.masker(tokens_BND)
        return probability_BN

    def learned_mask(self, keep_BN: Tensor) -> Mask:
        """Return the mask that shows the N - M patches of the highest keep-probabilities; ties to the lower number."""
        return split_order(keep_BN.argsort(dim=1, descending=True, stable=True), self.config.num_visible)

    def _masker_losses(self, patches_BNP: Tensor) -> Losses:
        """Return curriculum * recon + gauss + kl + diversity (see `masker_losses`)."""
        # All tokens are encoded, each scaled by its probability (positions too), and nothing is a mask token. A frozen
        # weight needs no gradient, so the graph keeps no activations for it.
        with frozen(self.encoder, self.decoder):
            tokens_BND = self.encoder.embed_patches(patches_BNP).detach()
            keep_BN = self.masker(tokens_BND)
            everything = whole_image(len(patches_BNP), self.config, patches_BNP.device)
            latent_BTD = self.encoder.encode(tokens_BND * keep_BN[:, :, None])
            prediction_BNP = self.decoder(latent_BTD, everything)
        loss_BN = patch_errors(prediction_BNP, self.targets(patches_BNP))
        # Ratio and diversity are statistics of the whole batch, so every rank computes them on all rows.
        parts = masker_losses(gather_rows(wide(keep_BN)), gather_rows(loss_BN), self.config)
        total = self.curriculum * parts["recon"] + parts["gauss"] + parts["kl"] + parts["diversity"]
        detached = {name: value.detach() for name, value in parts.items()}
        detached |= {"keep_mean": keep_BN.detach().mean(), "curriculum": total.new_full((), self.curriculum)}
        hidden_BN = (1 - keep_BN).detach()
        return Losses(total, loss_BN.detach().mean(dim=1), loss_BN.detach() * hidden_BN, hidden_BN, detached)


class MaskingNetwork(nn.Module):
    """Small transformer from patch tokens to a keep-probability for each patch, read off its class token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=MASKER_LAYER_NORM_EPS)
        settings = config.clmae
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        blocks = [
            Block(config.width, settings.masker_heads, 4.0, qkv_bias=True, norm_layer=norm)
            for _ in range(settings.masker_depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(config.width)
        self.head = nn.Linear(config.width, config.num_patches)
        nn.init.normal_(self.cls_token, std=0.02)
        self.apply(init_xavier)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return keep-probabilities in (0, 1), [B, N]."""
        cls = self.cls_token.expand(len(tokens_BND), -1, -1)
        tokens_BTD = torch.cat([cls.to(tokens_BND.dtype), tokens_BND], dim=1)
        cls_BD = run_blocks(self.blocks, tokens_BTD)[:, 0]
        keep_BN: Tensor = self.head(self.norm(cls_BD)).sigmoid()
        return keep_BN


def masker_losses(keep_BN: Tensor, loss_BN: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Return the four losses of the masking network by name, each with its weight but for the curriculum factor.

    METHODS section 5, from the official code; s the keep-probabilities, l the errors, sigma = .12:

      recon      sum(l (1 - s)) / sum(1 - s)
      gauss      mean(exp(-(s - 1/2)^2 / (2 sigma^2)) sigma sqrt(2 pi)): s is driven to 0 or 1
      kl         KL(Bernoulli(mean_N s) || Bernoulli(keep ratio)), mean or sum over the batch
      diversity  mean over pairs of masks of exp(-0.1 |s_i - s_j|)
    """
    settings = config.clmae
    hidden_BN = 1 - keep_BN
    recon = (loss_BN * hidden_BN).sum() / hidden_BN.sum()
    peak = GAUSS_SIGMA * math.sqrt(2 * math.pi)  # as in the official code; a density would divide by it
    gauss = (torch.exp(-((keep_BN - 0.5) ** 2) / (2 * GAUSS_SIGMA**2)) * peak).mean()
    divergence_B = bernoulli_divergence(keep_BN.mean(dim=1), 1 - config.mask_ratio)
    kl = divergence_B.sum() if settings.kl_reduction == "sum" else divergence_B.mean()
    return {
        "recon": recon,
        "gauss": settings.weight_gauss * gauss,
        "kl": settings.weight_kl * kl,
        "diversity": settings.weight_diversity * diversity(keep_BN),
    }


def bernoulli_divergence(probability_B: Tensor, target: float) -> Tensor:
    """Return KL(Bernoulli(p) || Bernoulli(target)) of each p, [B]; 0 exactly where p = target."""
    # Probabilities of 0 and 1 are possible when all of a row saturates: log(0) * 0 would be NaN.
    p = probability_B.clamp(KEEP_TINY, 1 - KEEP_TINY)
    return p * (p / target).log() + (1 - p) * ((1 - p) / (1 - target)).log()


def diversity(keep_BN: Tensor) -> Tensor:
    """Return the mean over pairs i < j of exp(-0.1 |s_i - s_j|), a scalar: 1 when all are equal, 0 for a batch of one.

    Its gradient is 0 where two masks are equal, so it cannot undo a collapse to one mask.
    """
    if len(keep_BN) < 2:
        return keep_BN.new_zeros(())
    # F.pdist is the official double loop over pairs: 1.1 ms instead of 35 s at 256 masks.
    return torch.exp(-DIVERSITY_SCALE * F.pdist(keep_BN)).mean()


def curriculum_factor(progress: Progress, kind: str) -> float:
    """Return the factor on the reconstruction loss, from +1 at the start to -1 at the end.

    `linear` is one line over the steps. `literal` is the official formula by epoch e of E: 1 - 2 e / E in the first
    half, 1 - 2 (e + 1) / E in the second; it is never 0 for an even E.
    """
    if kind == "linear":
        return 1 - 2 * progress.step / max(progress.total_steps - 1, 1)
    epoch, epochs = progress.epoch, progress.num_epochs
    return 1 - 2 * (epoch + (epoch >= epochs / 2)) / epochs


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Build a graph in which the modules' parameters are constants: it keeps nothing for their gradients."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
