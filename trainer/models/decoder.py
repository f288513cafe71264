"""The decoder of MAE: a narrow transformer on latents of visible patches and mask tokens for hidden ones.

Its tokens are in [class | visible | masked] order, not in image order: the masked tokens are one slice at the end.

Shapes: B batch, N patches, V visible, M masked, S seen tokens (1 + V), T tokens (1 + N), K predicted tokens, D encoder
width, E decoder width, P values of a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import Mask
from trainer.models.vit import LAYER_NORM_EPS, make_blocks, run_blocks, sincos_positions
from trainer.models.weights import init_xavier


class TokenDecoder(nn.Module):
    """Narrow transformer from latents and mask tokens to values for each patch: its pixels, or a score."""

    def __init__(self, config: ModelConfig, *, depth: int, values: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, config.grid), requires_grad=False)
        self.blocks = make_blocks(width, depth, config.decoder_heads)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(width, values)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_xavier)

    def forward(
        self, latent_BSD: Tensor, mask: Mask, observe: Callable[[Tensor], None] | None = None, *, first: int = 1
    ) -> Tensor:
        """Return the values predicted for the tokens from number `first` on, [B, 1 + N - first, values].

        The latents are in the order of the mask's list; `observe` is called as by `run_blocks`. `first` is 1 for all
        patches, 1 + V for the hidden ones alone: only these pay for the last layer.
        """
        # Latents, then mask tokens, all with positions (official MAE).
        seen_BSE = self.embed(latent_BSD)
        positions = self.pos_embed[0, 1:]
        cls = seen_BSE[:, :1] + self.pos_embed[:, :1]
        visible = seen_BSE[:, 1:] + positions[mask.visible_BV]
        masked = self.mask_token + positions[mask.masked_BM]
        tokens_BTE = torch.cat([cls, visible, masked.to(cls.dtype)], dim=1)
        tokens_BTE = run_blocks(self.blocks, tokens_BTE, observe)
        values_BKP: Tensor = self.pred(self.norm(tokens_BTE[:, first:]))
        return values_BKP
