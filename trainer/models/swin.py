"""The Swin encoder of SimMIM: timm's SwinTransformer with a mask token.

Tokens are 4-pixel patches at the input and 32-pixel squares after the last stage, so a mask must be made of whole
squares. There is no class token: the mean of the last tokens stands in its place.

Shapes: B batch, N patches of the input, K tokens of the last stage, D width of the last stage.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from trainer.config import ModelConfig, require
from trainer.masking import simmim_blocks
from trainer.models.vit import linear_patches, patchify

LAYER_NORM_EPS = 1e-5  # official Swin


class SwinEncoder(nn.Module):
    """timm's SwinTransformer whose masked input patches are replaced by a mask token."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the stages.

        Raises:
            ValueError: a token of the last stage could be hidden in part, or the stages do not divide the image.
        """
        super().__init__()
        # Every stage but the first halves the grid and doubles the width.
        reduction = 2 ** (len(config.swin.depths) - 1)
        self.patch_size, self.grid = config.patch_size, config.grid
        self.stride, self.out_width = config.patch_size * reduction, config.width * reduction
        # A token of the last stage must be hidden whole or not at all: its pixels are predicted together.
        require(
            config.masking in ("auto", "simmim"),
            f"a swin encoder needs masks of whole squares; got masking {config.masking!r}. Use masking='simmim'.",
        )
        block = simmim_blocks(config)[1] * config.patch_size
        require(
            block % self.stride == 0,
            f"mask blocks must be a multiple of the Swin stride ({self.stride} pixels); image_size {config.image_size} "
            f"gives blocks of {block}. Use a larger image, a smaller patch_size or fewer stages.",
        )
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
        """Return normalised tokens of the last stage behind their mean, [B, 1 + K, D]; the mask hides where it is 1.

        `observe` is called with the first block's input and every block's output, each behind its mean; their number
        and width are those of the block's stage.
        """
        embed: Any = self.trunk.patch_embed
        tokens = embed.norm(linear_patches(embed, patches_BNP))
        if mask_BN is not None:
            masked = mask_BN.to(tokens.dtype)[:, :, None]
            tokens = tokens * (1 - masked) + self.mask_token * masked
        # timm's stages take squares, not lists; the mean stands where a ViT has its class token.
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

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the mean token and the tokens of the last stage of the whole image, [B, 1 + K, D]."""
        return self.encode(patchify(images_BCHW, self.patch_size))

    forward = features


def behind_mean(square_BHWD: Tensor) -> Tensor:
    """Return the tokens of a square as a list behind their mean, [B, 1 + H * W, D]."""
    tokens_BKD = square_BHWD.flatten(1, 2)
    return torch.cat([tokens_BKD.mean(dim=1, keepdim=True), tokens_BKD], dim=1)
