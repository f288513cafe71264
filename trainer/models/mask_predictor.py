"""The predictor of patch difficulty behind patch-aware selection (PASS; METHODS section 7).

It learns to predict the reconstruction loss of each hidden patch from the latents of the visible ones. For a selection
it predicts the loss of every patch of the whole image: the hardest are hidden, and the sample's score is their loss,
weighted by the prediction.

Shapes: B batch, N patches, M masked, T tokens, D width.
"""

import math

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import Mask, simmim_blocks, split_order
from trainer.models.vit import LAYER_NORM_EPS, make_blocks
from trainer.models.weights import init_xavier


class TokenPredictor(nn.Module):
    """Blocks of the encoder's width on all tokens, then one value a patch: the predictor of SimMIM."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = make_blocks(config.width, config.pass_.predictor_depth, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(config.width, 1)
        self.apply(init_xavier)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return the predicted loss of each patch, [B, N], from encoder tokens behind a class token."""
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD)
        predicted_BN: Tensor = self.pred(self.norm(tokens_BTD[:, 1:])).squeeze(-1)
        return predicted_BN


def hardest_patches(predicted_BN: Tensor, num_masked: int) -> Mask:
    """Return the mask that hides the patches with the largest predicted loss; ties go to the lower number."""
    order_BN = predicted_BN.argsort(dim=1, descending=True, stable=True)
    return split_order(order_BN.roll(-num_masked, dims=1), predicted_BN.shape[1] - num_masked)


def hardest_blocks(predicted_BN: Tensor, config: ModelConfig) -> Mask:
    """Return the mask that hides the SimMIM blocks with the largest mean predicted loss."""
    blocks, scale = simmim_blocks(config)
    hidden = math.ceil(blocks**2 * config.mask_ratio)
    squares = predicted_BN.view(-1, blocks, scale, blocks, scale).mean(dim=(2, 4)).flatten(1)
    coarse = hardest_patches(squares, hidden).mask_BN.view(-1, blocks, blocks)
    fine = coarse.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)
    return split_order(fine.argsort(dim=1, stable=True), config.num_patches - hidden * scale**2)


def whole_image(batch: int, config: ModelConfig, device: torch.device) -> Mask:
    """Return the mask that hides nothing."""
    return split_order(torch.arange(config.num_patches, device=device).expand(batch, -1), config.num_patches)
