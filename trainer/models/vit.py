"""The vision transformer encoder, made of timm's blocks, and what all networks share: patches and positions.

The parameters of `Encoder` have the names of timm's VisionTransformer (cls_token, pos_embed, patch_embed.proj,
blocks.i..., norm), so its state dict is a timm state dict. The encoder embeds only the patches that it is called
with: hidden pixels cost nothing.

Shapes: B batch, N patches, V visible, T tokens (1 + patches), D width, P values of a patch (patch_size^2 * 3).
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models import beit
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import take
from trainer.models.weights import init_xavier

LAYER_NORM_EPS = 1e-6  # MAE, SimMIM, BootMAE and timm's ViT


class Encoder(nn.Module):
    """A ViT with a class token on all patches of an image, or on the visible ones."""

    def __init__(self, config: ModelConfig, *, row_first: bool = False) -> None:
        super().__init__()
        self.grid = config.grid
        self.patch_size = config.patch_size
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, 3, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        positions = sincos_positions(config.width, config.grid, row_first=row_first)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = make_blocks(
            config.width,
            config.depth,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            drop_path=config.drop_path,
            layer_scale=config.layer_scale,
        )
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        nn.init.normal_(self.cls_token, std=0.02)
        self.apply(init_xavier)

    def embed_patches(self, patches_BVP: Tensor, index_BV: Tensor | None = None) -> Tensor:
        """Return patch tokens with positions, [B, V, D]; `index_BV` numbers them unless they are all N in order."""
        tokens_BVD = linear_patches(self.patch_embed, patches_BVP)
        positions = self.pos_embed[0, 1:]
        return tokens_BVD + (positions if index_BV is None else positions[index_BV])

    def prepend_cls(self, tokens_BVD: Tensor) -> Tensor:
        """Return the tokens behind the class token and its position, [B, 1 + V, D]."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens_BVD), -1, -1)
        return torch.cat([cls.to(tokens_BVD.dtype), tokens_BVD], dim=1)

    def encode(self, tokens_BVD: Tensor) -> Tensor:
        """Return normalised tokens, class token first, [B, 1 + V, D], from embedded patches in any order."""
        normalised_BTD: Tensor = self.norm(run_blocks(self.blocks, self.prepend_cls(tokens_BVD)))
        return normalised_BTD

    def encode_visible(self, patches_BNP: Tensor, visible_BV: Tensor) -> Tensor:
        """Return normalised tokens of the visible patches, class token first, [B, 1 + V, D], in the index's order."""
        return self.encode(self.embed_patches(take(patches_BNP, visible_BV), visible_BV))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return normalised tokens of the whole image, class token first, [B, 1 + N, D], for evaluation."""
        return self.encode(self.embed_patches(patchify(images_BCHW, self.patch_size)))

    forward = features


def make_blocks(
    width: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    layer_scale: float = 0.0,
) -> nn.ModuleList:
    """Return timm's pre-norm blocks; stochastic depth grows linearly from 0 to `drop_path`."""
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    norm: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
    make = partial(Block, width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm, init_values=layer_scale or None)
    return nn.ModuleList([make(drop_path=rate) for rate in rates])


def run_blocks(
    blocks: Iterable[nn.Module], tokens_BTD: Tensor, observe: Callable[[Tensor], None] | None = None, **inputs: Tensor
) -> Tensor:
    """Return the output of the last block, [B, T, D]; `observe` is called with the first's input and every output.

    `inputs` are further arguments, the same for every block.
    """
    if observe:
        observe(tokens_BTD)
    for block in blocks:
        tokens_BTD = block(tokens_BTD, **inputs)
        if observe:
            observe(tokens_BTD)
    return tokens_BTD


def linear_patches(patch_embed: PatchEmbed, patches_BVP: Tensor) -> Tensor:
    """Return the tokens of patches, [B, V, D]: timm's patch convolution as a matrix product."""
    # A convolution would need the whole image; the product takes any list of patches.
    weight = patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, P] in the order of a patch
    return F.linear(patches_BVP, weight, patch_embed.proj.bias)


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Return the patches of images, [B, N, P], each in (row, column, channel) order (official MAE)."""
    batch, channels, height, width = images_BCHW.shape
    rows, columns = height // patch_size, width // patch_size
    x = images_BCHW.view(batch, channels, rows, patch_size, columns, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches_BNP: Tensor, patch_size: int) -> Tensor:
    """Return the square images that `patchify` made the patches from, [B, C, H, W]; P is patch_size^2 * C."""
    batch, num_patches, values = patches_BNP.shape
    side, channels = math.isqrt(num_patches), values // patch_size**2
    x = patches_BNP.view(batch, side, side, patch_size, patch_size, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, channels, side * patch_size, side * patch_size)


def sincos_positions(width: int, grid: int, *, row_first: bool = False) -> Tensor:
    """Return fixed 2-D sine-cosine positions, float32[1, 1 + grid^2, width], zeros for the class token.

    The first half of a position encodes the column (the row with `row_first`, as in BootMAE), the second the other;
    each half is [sin(p w_k) | cos(p w_k)] with w_k = 10000^(-k / (width / 4)), k < width / 4 (official MAE:
    `get_2d_sincos_pos_embed`, whose mesh puts the width first).
    """
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width / 2]
    column, row = line.repeat(grid, 1), line.repeat_interleave(grid, 0)
    halves = [row, column] if row_first else [column, row]
    return F.pad(torch.cat(halves, dim=1), (0, 0, 1, 0)).float()[None]


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks inside a module; each is compiled, and sharded, by itself."""
    return [part for part in module.modules() if isinstance(part, Block | beit.Block | SwinTransformerBlock)]


def use_plain_attention(module: nn.Module) -> None:
    """Compute attention as matrix products and a softmax, without torch's fused kernel.

    For bf16 on a CPU: the backward pass of the fused kernel there takes ten times as long as in float32 (torch 2.15).
    """
    for part in module.modules():
        if isinstance(part, Attention):
            part.fused_attn = False  # type: ignore[misc]  # final for TorchScript alone
