"""The encoder of SimMIM and ConMIM: timm's BEiT blocks, one shared table of relative positions, and a mask token.

All tokens are encoded; masked ones are replaced by the mask token before the class token is added. The parameters
have the names of timm's `Beit` with `use_shared_rel_pos_bias` and without absolute positions, which are also the
official names; `mask_token` is the one that timm does not have.

Shapes: B batch, N patches, T tokens (1 + N), D width.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Block, RelativePositionBias
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.models.vit import LAYER_NORM_EPS, linear_patches, patchify, run_blocks
from trainer.models.weights import narrow_normal


class RelativeEncoder(nn.Module):
    """A ViT with relative positions on every patch, the masked ones as mask tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid, self.patch_size = config.grid, config.patch_size
        self.stride, self.out_width = config.patch_size, config.width  # as a Swin's: one output token a patch here
        norm: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, 3, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.rel_pos_bias = RelativePositionBias((config.grid, config.grid), config.heads)
        make = partial(Block, config.width, config.heads, qkv_bias=True, mlp_ratio=config.mlp_ratio, norm_layer=norm)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList([make(init_values=config.layer_scale or None, drop_path=rate) for rate in rates])
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as SimMIM does: cut normals, the output matrices of block l divided by sqrt(2 * (l + 1))."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                narrow_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        narrow_normal(self.cls_token)
        narrow_normal(self.mask_token)
        with torch.no_grad():
            for layer, block in enumerate(self.blocks, start=1):
                assert isinstance(block, Block)
                block.attn.proj.weight.div_(math.sqrt(2.0 * layer))
                block.mlp.fc2.weight.div_(math.sqrt(2.0 * layer))

    def encode(
        self, patches_BNP: Tensor, mask_BN: Tensor | None = None, observe: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """Return normalised tokens, class token first, [B, T, D], those that the mask hides (1) as mask tokens.

        `observe` is called as by `run_blocks`.
        """
        tokens_BND = linear_patches(self.patch_embed, patches_BNP)
        if mask_BN is not None:
            masked = mask_BN.to(tokens_BND.dtype)[:, :, None]
            tokens_BND = tokens_BND * (1 - masked) + self.mask_token * masked
        cls = self.cls_token.expand(len(tokens_BND), -1, -1)
        tokens_BTD = torch.cat([cls.to(tokens_BND.dtype), tokens_BND], dim=1)
        # One table for all blocks, as in pretraining; fine-tuning gives each block its own copy.
        bias_HTT = self.rel_pos_bias().to(tokens_BTD.dtype)
        tokens_BTD = run_blocks(self.blocks, tokens_BTD, observe, shared_rel_pos_bias=bias_HTT)
        normalised_BTD: Tensor = self.norm(tokens_BTD)
        return normalised_BTD

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return normalised tokens of the whole image, class token first, [B, 1 + N, D]."""
        return self.encode(patchify(images_BCHW, self.patch_size))

    forward = features
