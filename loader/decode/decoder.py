"""The contract of a decoder, which `cpu` (the reference) and `dali` meet: what it is given and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loader.config import Transform
from loader.decode.header import ImageHeader
from loader.decode.resize import Rgb


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image to decode. Its CRC and its header have been checked."""

    sample_id: int
    """Row of the sample index. The same id always names the same bytes."""
    data: bytes
    header: ImageHeader
    box: NDArray[np.int32]
    """(top, left, height, width) of the part to resize, in pixels."""
    flip: bool
    """Mirror left to right."""
    keep: Callable[[Rgb], None] | None = None
    """Called with the whole decoded image, uint8[H, W, 3], for a cache. With None only the box need be decoded."""


class Decoder(Protocol):
    """Turns checked bytes into pixels. Called from several threads at once."""

    @property
    def rows_per_call(self) -> int:
        """Number of images that it prefers in one call."""

    def decode(self, images: Sequence[EncodedImage], transform: Transform, out: Sequence[Rgb]) -> list[str | None]:
        """Decode and transform n images.

        Args:
            images: n encoded images with their boxes and flips.
            transform: Applied to each.
            out: n arrays uint8[size, size, 3], written.

        Returns:
            For each image None, or the reason why it does not decode.
        """
