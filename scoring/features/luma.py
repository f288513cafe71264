"""Luma images of one small size: what descriptions of shape look at."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Uint8 = NDArray[np.uint8]

LUMA_SIDE = 64


def luma_images(images: Uint8) -> list[Uint8]:
    """Luma (ITU-R BT.601) of each image of uint8 [n, 3, H, W], uint8 [64, 64]."""
    side = (LUMA_SIDE, LUMA_SIDE)
    rule = cv2.INTER_AREA if min(images.shape[2:]) > LUMA_SIDE else cv2.INTER_LINEAR
    grey = (cv2.cvtColor(image.transpose(1, 2, 0), cv2.COLOR_RGB2GRAY) for image in images)
    return [np.asarray(cv2.resize(image, side, interpolation=rule), dtype=np.uint8) for image in grey]
