"""Frozen features of labelled images: one vector an image, from the class token or the mean of the patch tokens.

Shapes: B batch, D width, T tokens, N images.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import require
from trainer.evaluate.data import LabelledShards, center_crop
from trainer.evaluate.encoders import PretrainedEncoder
from trainer.evaluate.fit import Progress
from trainer.evaluate.knn import Pool, pooled
from trainer.precision import autocast


class Features(NamedTuple):
    """Features of a labelled data set."""

    values: NDArray[np.float32]
    """float32[N, D]."""
    labels: NDArray[np.int64]
    """int64[N], 0 or more."""


class Extractor:
    """A pretrained encoder on a device, from bytes to vectors.

    Tokens are taken after `layer` blocks, before any norm, as BootMAE's linear probe reads them; 0 takes the output.

    Raises:
        ValueError: the encoder has fewer blocks.
    """

    def __init__(self, pretrained: PretrainedEncoder, device: torch.device, *, layer: int = 0) -> None:
        self.pretrained, self.device = pretrained, device
        self.encoder: Any = pretrained.encoder.to(device).eval().requires_grad_(False)
        blocks = getattr(getattr(self.encoder, "model", self.encoder), "blocks", ())
        require(
            0 <= layer <= len(blocks),
            f"layer must be in 0..{len(blocks)} (blocks of {pretrained.name}); got {layer}.",
        )
        self.block: nn.Module | None = blocks[layer - 1] if layer else None
        self.prefix = int(getattr(self.encoder, "prefix", 1))
        self.shift, self.scale = pretrained.pixel_statistics(device, 255)

    @torch.no_grad()
    def tokens(self, images_u8: Tensor) -> Tensor:
        """Return tokens of uint8[B, 3, H, W] images, float32[B, 1 + N, D], the class token first."""
        images = (images_u8.to(self.device, non_blocking=True).float() - self.shift) / self.scale
        with autocast(self.device, "auto"):
            if self.block is None:
                found: Tensor = self.encoder.features(images)
            else:
                taken: list[Tensor] = []
                with self.block.register_forward_hook(lambda module, inputs, output: taken.append(output)):
                    self.encoder.features(images)
                # `features` returns one leading token; a block's output has all of the model's prefix tokens.
                found = torch.cat([taken[0][:, :1], taken[0][:, self.prefix :]], dim=1)
        return found.float()

    def extract(
        self, shards: LabelledShards, pools: tuple[Pool, ...], *, batch: int = 256, progress: Progress | None = None
    ) -> dict[Pool, Features]:
        """Return the features of all images with the evaluation crop, by pooling; broken images are left out.

        `progress` is called with (images done, all images).

        Raises:
            ValueError: no image can be decoded.
        """
        # Allocated once for all images: joining batches at the end would need the memory twice.
        values: dict[Pool, NDArray[np.float32]] = {}
        kept: list[NDArray[np.int64]] = []
        done = 0
        for images, _, rows in shards.in_order(center_crop(self.pretrained.image_size), batch=batch):
            tokens_BTD = self.tokens(images)
            for pool in pools:
                found = pooled(tokens_BTD, pool).cpu().numpy()
                store = values.setdefault(pool, np.empty((len(shards), found.shape[1]), np.float32))
                store[done : done + len(found)] = found
            done += len(rows)
            kept.append(rows)
            if progress:
                progress(int(rows[-1]) + 1 if len(rows) else done, len(shards))
        rows = np.concatenate(kept)
        require(len(rows) > 0, f"an evaluation needs images that can be decoded; {shards.path} has none.")
        return {pool: Features(store[: len(rows)], shards.labels[rows]) for pool, store in values.items()}
