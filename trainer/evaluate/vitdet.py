"""A plain ViT as a detection backbone, and a feature pyramid from its last map (ViTDet, Li et al., arXiv:2203.16527).

1. Blocks attend inside windows of 14 x 14 tokens, but for four that attend everywhere.
2. All have decomposed relative positions, which start at zero; absolute positions are resized to the image.
3. The last map, stride 16, becomes strides 4, 8, 16, 32 and, pooled, 64.

Shapes: B batch, H W grid of tokens, D width, N heads, C channels of the pyramid.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn

from trainer.config import require

PYRAMID_WIDTH = 256
WINDOW = 14


class WindowBlock(nn.Module):
    """A timm block, with its weights, on a map of tokens: attention inside windows, and relative positions.

    `window` is the side of a window in tokens; 0 attends everywhere, on a map of side `grid`.
    """

    def __init__(self, block: nn.Module, *, window: int, grid: int) -> None:
        super().__init__()
        taken: Any = block
        self.block = taken
        self.window = window
        self.heads = int(taken.attn.num_heads)
        side, width = window or grid, int(taken.attn.head_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width))

    def forward(self, map_BHWD: Tensor) -> Tensor:
        block = self.block
        attended = self.windowed(block.norm1(map_BHWD))
        map_BHWD = map_BHWD + block.drop_path1(block.ls1(attended))
        changed: Tensor = map_BHWD + block.drop_path2(block.ls2(block.mlp(block.norm2(map_BHWD))))
        return changed

    def windowed(self, map_BHWD: Tensor) -> Tensor:
        """Return the attention's output, window by window; the map is padded to whole windows."""
        if not self.window:
            return self.attend(map_BHWD)
        _, height, width, _ = map_BHWD.shape
        windows, padded = window_partition(map_BHWD, self.window)
        return window_unpartition(self.attend(windows), self.window, (height, width), padded)

    def attend(self, map_BHWD: Tensor) -> Tensor:
        """Return self-attention over a whole map with decomposed relative positions."""
        attention = self.block.attn
        batch, height, width, depth = map_BHWD.shape
        qkv = attention.qkv(map_BHWD.flatten(1, 2)).view(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = relative_bias(q.view(batch, self.heads, height, width, -1), self.rel_pos_h, self.rel_pos_w)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        projected: Tensor = attention.proj(out.transpose(1, 2).reshape(batch, height * width, depth))
        return projected.view(batch, height, width, -1)


def relative_bias(query_BNHWd: Tensor, table_h: Tensor, table_w: Tensor) -> Tensor:
    """Return the bias of relative positions, [B, N, H W, H W]: q . (R_h[row distance] + R_w[column distance]).

    Decomposed by axis (MViTv2, arXiv:2112.01526): a table has a vector for each distance, [2 * side - 1, d].
    """
    height, width = query_BNHWd.shape[2:4]
    rows, columns = get_rel_pos(height, height, table_h), get_rel_pos(width, width, table_w)
    by_row = torch.einsum("bnhwd,hkd->bnhwk", query_BNHWd, rows.to(query_BNHWd.dtype))
    by_column = torch.einsum("bnhwd,wkd->bnhwk", query_BNHWd, columns.to(query_BNHWd.dtype))
    both = by_row[..., :, None] + by_column[..., None, :]
    return both.flatten(4, 5).flatten(2, 3)


class PlainBackbone(nn.Module):
    """timm's VisionTransformer as maps of several strides and `width` channels, for torchvision's detectors.

    The trunk's positions are of `grid` x `grid` tokens; attention windows are of `window` x `window`.

    Raises:
        ValueError: the encoder is not a plain ViT.
    """

    def __init__(self, trunk: nn.Module, *, grid: int, window: int = WINDOW, width: int = PYRAMID_WIDTH) -> None:
        super().__init__()
        require(
            isinstance(trunk, VisionTransformer),
            f"detection needs a plain ViT with absolute positions (mae, bootmae, clmae); got {type(trunk).__name__}.",
        )
        model: Any = trunk
        self.trunk = model
        self.patch = int(model.patch_embed.patch_size[0])
        # The last block of each quarter (2, 5, 8, 11 of 12) carries information between the windows.
        everywhere = {max(round(len(model.blocks) * part / 4) - 1, 0) for part in (1, 2, 3, 4)}
        self.blocks = nn.ModuleList(
            [
                WindowBlock(block, window=0 if number in everywhere else min(window, grid), grid=grid)
                for number, block in enumerate(model.blocks)
            ]
        )
        self.trunk.blocks = nn.ModuleList()  # the blocks moved: each parameter must have one name
        self.pyramid = Pyramid(int(model.embed_dim), width)
        self.out_channels = width

    def forward(self, images_BCHW: Tensor) -> "OrderedDict[str, Tensor]":
        """Return maps of [B, 256, h, w] named 0 to 3 and pool, at strides 4, 8, 16, 32 and 64."""
        # The class token is left out: a map has no place for it.
        map_BDHW = self.trunk.patch_embed.proj(images_BCHW)
        size, prefix = map_BDHW.shape[2:], self.trunk.num_prefix_tokens
        positions = resample_abs_pos_embed(self.trunk.pos_embed[:, prefix:], size, num_prefix_tokens=0, antialias=False)
        x = map_BDHW.permute(0, 2, 3, 1) + positions.view(1, *size, -1)
        for block in self.blocks:
            x = block(x)
        levels: OrderedDict[str, Tensor] = self.pyramid(x.permute(0, 3, 1, 2))
        return levels


class Pyramid(nn.Module):
    """Simple feature pyramid: every level from the one last map."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        to4 = [
            nn.ConvTranspose2d(width, half, 2, 2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        ]
        self.levels = nn.ModuleList(
            [
                level(nn.Sequential(*to4), quarter, out),
                level(nn.ConvTranspose2d(width, half, 2, 2), half, out),
                level(nn.Identity(), width, out),
                level(nn.MaxPool2d(2, 2), width, out),
            ]
        )

    def forward(self, map_BDHW: Tensor) -> "OrderedDict[str, Tensor]":
        maps = OrderedDict((str(number), level(map_BDHW)) for number, level in enumerate(self.levels))
        # Stride 64 for the largest anchors only; subsampled without learning, as in FPN.
        maps["pool"] = F.max_pool2d(maps["3"], 1, 2)
        return maps


def level(rescale: nn.Module, width: int, out: int) -> nn.Sequential:
    """Return one level: rescale, then two convolutions with norms to the pyramid's channels."""
    return nn.Sequential(
        rescale,
        nn.Conv2d(width, out, 1, bias=False),
        LayerNorm2d(out),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        LayerNorm2d(out),
    )
