"""Masked Token Optimization: three add-on losses on the tokens of every layer (METHODS section 6; no official code).

A masked token is heterogeneous when it is equally (un)related to all visible tokens. H^l is the mean entropy, over
masked tokens, of their softmax similarity to the visible tokens after layer l (Eq. 2):

  spa      at layer 0, the entropy of each visible token's similarity to all tokens: visible tokens should not lean on
           masked ones (Eq. 3)
  entropy  1 / H^0: masked tokens start heterogeneous (Eq. 4)
  rank     softplus of the change of H from layer to layer: it falls with depth (the text), or rises (Eq. 5 as printed)

Where tokens are merged between stages (Swin), layers are compared within a stage only: the paper does not cover it,
and the entropies of stages have other ranges.

Shapes: B batch, T tokens, V visible, M masked, D width, R C rows and columns of a similarity.
"""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.config import MtoConfig
from trainer.precision import wide, without_autocast

ENTROPY_EPS = 1e-6  # Eq. 4; the paper leaves it open
ENTROPY_FLOOR = 1e-3  # keeps 1 / H finite when raw similarities saturate

Split = Callable[[Tensor], tuple[Tensor, Tensor]]


class MtoObserver:
    """Called with the tokens before the first block and after each; sums the losses of one forward pass."""

    def __init__(self, config: MtoConfig, split: Split) -> None:
        """Start a pass; `split` returns the (masked, visible) patch tokens of [B, T, D] tokens, no class token."""
        self.config, self.split = config, split
        self.heterogeneity: list[Tensor] = []
        self._tokens: list[int] = []
        self._spa: Tensor | None = None

    def __call__(self, tokens_BTD: Tensor) -> None:
        """Take the tokens of the next layer, [B, T, D]."""
        if self._spa is None:
            self._spa = self._recomputed(self._sparsity, tokens_BTD)
        # H^l (Eq. 2), in [0, ln V]: the mean over images of what the paper defines for one.
        layer = self._recomputed(lambda masked, visible: entropy(similarity(masked, visible, self.config)), tokens_BTD)
        self.heterogeneity.append(layer.mean())
        self._tokens.append(tokens_BTD.shape[1])

    def losses(self) -> dict[str, Tensor]:
        """Return the weighted losses by name, scalars: mto_spa (Eq. 3), mto_entropy (Eq. 4), mto_rank (Eq. 5)."""
        assert self._spa is not None, "an observer must have seen at least one layer"
        # Only layers with equally many tokens compare.
        pairs = itertools.pairwise(zip(self._tokens, self.heterogeneity, strict=True))
        steps = [later - earlier for (before, earlier), (after, later) in pairs if before == after]
        # Eq. 5 as printed makes H rise with depth, against the paper's text: the sign is a setting.
        sign = -1 if self.config.rank_sign == "paper" else 1
        rank = F.softplus(sign * torch.stack(steps)).sum() if steps else self.heterogeneity[0].new_zeros(())
        first = self.heterogeneity[0].clamp(min=ENTROPY_FLOOR)
        return {
            "mto_spa": self.config.weight_spa * self._spa,
            "mto_entropy": self.config.weight_entropy / (first + ENTROPY_EPS),
            "mto_rank": self.config.weight_rank * rank,
        }

    def _recomputed(self, function: Callable[[Tensor, Tensor], Tensor], tokens_BTD: Tensor) -> Tensor:
        """Call a function of the (masked, visible) tokens, which the backward pass calls again.

        Without that every layer would keep its [B, M, V] similarities.
        """

        def of_tokens(tokens_BTD: Tensor) -> Tensor:
            masked_BMD, visible_BVD = self.split(tokens_BTD)
            return function(masked_BMD, visible_BVD.detach() if self.config.detach_visible else visible_BVD)

        if not (torch.is_grad_enabled() and tokens_BTD.requires_grad):
            return of_tokens(tokens_BTD)
        value: Tensor = checkpoint(of_tokens, tokens_BTD, use_reentrant=False, preserve_rng_state=False)
        return value

    def _sparsity(self, masked_BMD: Tensor, visible_BVD: Tensor) -> Tensor:
        """Return the entropy of the visible rows' similarity to all tokens (Eq. 3), a scalar.

        A sum over the V rows of an image as printed, or their mean, then the mean over images.
        """
        logits_BVN = similarity(visible_BVD, torch.cat([visible_BVD, masked_BMD], dim=1), self.config)
        if self.config.exclude_diagonal:
            same = torch.eye(logits_BVN.shape[1], logits_BVN.shape[2], dtype=torch.bool, device=logits_BVN.device)
            logits_BVN = logits_BVN.masked_fill(same, -torch.inf)
        rows_BV = entropy(logits_BVN)
        return rows_BV.sum(dim=1).mean() if self.config.spa_reduction == "sum" else rows_BV.mean()


def similarity(rows_BRD: Tensor, columns_BCD: Tensor, config: MtoConfig) -> Tensor:
    """Return the logits of the similarity softmax in float32 or better, [B, R, C], by the configured scale.

    The paper writes a softmax of X X^T alone (raw). On MAE's decoder, whose tokens carry positions, that saturates:
    H^0 is .25 of at most 3.89 at the first step (METHODS section 6). So sqrt_d is the default.
    """
    # Raw products of wide tokens overflow in fp16, and lose their differences in bf16.
    with without_autocast(rows_BRD):
        rows, columns = wide(rows_BRD), wide(columns_BCD)
        if config.similarity == "cosine":
            return F.normalize(rows, dim=-1) @ F.normalize(columns, dim=-1).mT / config.cosine_temperature
        scale = 1 / math.sqrt(rows.shape[-1]) if config.similarity == "sqrt_d" else 1.0
        return (rows * scale) @ columns.mT


def entropy(logits_BRC: Tensor) -> Tensor:
    """Return the entropy of each row's softmax in nats, [B, R] in [0, ln C]; entries of -inf count as probability 0."""
    # 0 * -inf would be NaN: the logarithm is cut at the lowest number, which times 0 is 0.
    log_p = logits_BRC.log_softmax(dim=-1)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)
