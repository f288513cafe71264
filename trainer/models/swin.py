"""The Swin encoder of SimMIM: timm's SwinTransformer with a mask token.

Tokens are 4-pixel patches at the input and 32-pixel squares after the last stage, so a mask must be made of whole
squares. There is no class token: the mean of the last tokens stands in its place.

Shapes: B batch, N patches of the input, K tokens of the last stage, D width of the last stage.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from trainer.config import ModelConfig, require
from trainer.masking import Mask, from_mask, simmim_blocks, split_tokens
from trainer.models.vit import linear_patches, patchify

LAYER_NORM_EPS = 1e-5  # official Swin


def require_whole_squares(config: ModelConfig) -> None:
    """Check that a mask hides every token of the last stage whole or not at all.

    Raises:
        ValueError: a last-stage token would be hidden in part.
    """
    stride = config.patch_size * 2 ** (len(config.swin.depths) - 1)
    require(
        config.masking in ("auto", "simmim"),
        f"a swin encoder needs masks of whole squares; got masking {config.masking!r}. Use masking='simmim'.",
    )
    block = simmim_blocks(config)[1] * config.patch_size
    require(
        block % stride == 0,
        f"mask blocks must be a multiple of the Swin stride ({stride} pixels); image_size {config.image_size} gives "
        "blocks of "
        f"{block}. Use a larger image, a smaller patch_size or fewer stages.",
    )


class SwinEncoder(nn.Module):
    """timm's SwinTransformer whose masked input patches are replaced by a mask token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stages = len(config.swin.depths)
        self.patch_size, self.grid = config.patch_size, config.grid
        self.reduction = 2 ** (stages - 1)
        self.stride = config.patch_size * self.reduction
        self.out_width = config.width * self.reduction
        require(
            config.image_size % self.stride == 0,
            f"image_size must be a multiple of the Swin stride ({self.stride}); got {config.image_size}.",
        )
        norm: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        self.trunk = SwinTransformer(
            config.image_size,
            config.patch_size,
            num_classes=0,
            global_pool="",
            embed_dim=config.width,
            depths=config.swin.depths,
            num_heads=config.swin.heads,
            window_size=config.swin.window,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path,
            norm_layer=norm,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def encode(
        self, patches_BNP: Tensor, mask_BN: Tensor | None = None, observe: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """Return normalised tokens of the last stage behind their mean, [B, 1 + K, D]; `observe` sees every layer.

        The observed tokens are those of their stage, behind their mean.
        """
        embed: Any = self.trunk.patch_embed
        tokens = embed.norm(linear_patches(embed, patches_BNP))
        if mask_BN is not None:
            masked = mask_BN.to(tokens.dtype)[:, :, None]
            tokens = tokens * (1 - masked) + self.mask_token * masked
        square = tokens.view(len(tokens), self.grid, self.grid, -1)
        if observe is None:
            return behind_mean(self.trunk.norm(self.trunk.layers(square)))
        observe(behind_mean(square))
        stages: Any = self.trunk.layers
        for stage in stages:
            square = stage.downsample(square)
            for block in stage.blocks:
                square = block(square)
                observe(behind_mean(square))
        return behind_mean(self.trunk.norm(square))

    def split(self, tokens_BTD: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Return the (masked, visible) tokens of any stage behind their mean."""
        side = math.isqrt(tokens_BTD.shape[1] - 1)
        return split_tokens(tokens_BTD, shrink_mask(mask, self.grid, self.grid // side))

    def coarse_mask(self, mask: Mask) -> Mask:
        """Return the mask of the last stage's tokens; each must be hidden or visible as a whole."""
        return shrink_mask(mask, self.grid, self.reduction)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the mean token and the tokens of the last stage of the whole image, [B, 1 + K, D]."""
        return self.encode(patchify(images_BCHW, self.patch_size))

    forward = features


def behind_mean(square_BHWD: Tensor) -> Tensor:
    """Return the tokens of a square as a list behind their mean, [B, 1 + H * W, D]."""
    tokens_BKD = square_BHWD.flatten(1, 2)
    return torch.cat([tokens_BKD.mean(dim=1, keepdim=True), tokens_BKD], dim=1)


def shrink_mask(mask: Mask, grid: int, factor: int) -> Mask:
    """Return the mask of squares of factor x factor tokens, each hidden or visible as a whole."""
    squares = mask.mask_BN.view(-1, grid, grid)[:, ::factor, ::factor].flatten(1)
    return from_mask(squares, mask.masked_BM.shape[1] // factor**2)
