"""Colour changes of the teacher's view in ConMIM: on the device, image by image, by counter-based randomness.

Jitter of brightness, contrast, saturation (.4, .4, .2) and hue (.1) with probability .8, grey with .2, blur with .1,
solarisation with .2: METHODS section 4. Each image has its own strengths; the jitter's four changes have a fixed order.

Shapes: B batch, C channels, H W image.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.randomness import StepRandomness

JITTER_PROBABILITY, GREY_PROBABILITY, BLUR_PROBABILITY, SOLARISE_PROBABILITY = 0.8, 0.2, 0.1, 0.2
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
BLUR_LOW, BLUR_HIGH = 0.1, 2.0  # standard deviation of the blur in pixels of a 224-pixel image
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 weights, as in torchvision


def change_colours(
    images_BCHW: Tensor, randomness: StepRandomness, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return normalised images after random colour changes; `mean` and `std` by channel normalised them."""
    shift, scale = (images_BCHW.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    draws = randomness.uniform("colours", len(images_BCHW), 9, like=images_BCHW)[:, :, None, None, None]
    x = images_BCHW * scale + shift
    jittered = jitter(x, *(draws[:, i] for i in range(4)))
    # Every change is computed for all images and chosen by `where`: a branch by image would wait for the device.
    x = torch.where(draws[:, 4] < JITTER_PROBABILITY, jittered, x)
    x = torch.where(draws[:, 5] < GREY_PROBABILITY, luma(x).expand_as(x), x)
    # The width is in pixels of a 224-pixel image: smaller images get a narrower blur.
    sigma = BLUR_LOW + (BLUR_HIGH - BLUR_LOW) * draws[:, 6].flatten()
    x = torch.where(draws[:, 7] < BLUR_PROBABILITY, blur(x, sigma * x.shape[-1] / 224), x)
    x = torch.where((draws[:, 8] < SOLARISE_PROBABILITY) & (x >= 0.5), 1 - x, x)
    return (x - shift) / scale


def jitter(images_BCHW: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Return images in [0, 1] with changed colours: torchvision's ColorJitter, but for the hue (`turn_hue`).

    Each draw is [B, 1, 1, 1] in [0, 1), and 1/2 changes nothing: a factor is in [1 - strength, 1 + strength), the hue
    turns by up to a tenth of the circle.
    """
    x = (images_BCHW * (1 + BRIGHTNESS * (2 * brightness - 1))).clamp(0, 1)
    mean_B111 = luma(x).mean(dim=(2, 3), keepdim=True)
    x = torch.lerp(mean_B111, x, 1 + CONTRAST * (2 * contrast - 1)).clamp(0, 1)
    x = torch.lerp(luma(x), x, 1 + SATURATION * (2 * saturation - 1)).clamp(0, 1)
    return turn_hue(x, (2 * hue - 1) * HUE).clamp(0, 1)


def luma(images_BCHW: Tensor) -> Tensor:
    """Return the grey image, [B, 1, H, W]."""
    return (images_BCHW * images_BCHW.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)


def turn_hue(images_BCHW: Tensor, turn_B111: Tensor) -> Tensor:
    """Return images whose colours are rotated about the grey axis by `turn_B111` circles (Rodrigues' formula)."""
    angle = 2 * math.pi * turn_B111.flatten()
    cos, sin = angle.cos(), angle.sin()
    grey, side = (1 - cos) / 3, sin / math.sqrt(3)
    same = cos + grey
    # One matrix product in RGB: a way through HSV would branch for each pixel.
    rows = [[same, grey - side, grey + side], [grey + side, same, grey - side], [grey - side, grey + side, same]]
    rotation_B33 = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    return torch.einsum("bij,bjhw->bihw", rotation_B33, images_BCHW)


def blur(images_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Return images blurred by a Gaussian, sigma_B its standard deviation in pixels for each image.

    All kernels are as long as the widest possible one needs, three deviations to each side: the shape is fixed.
    """
    batch, channels, height, width = images_BCHW.shape
    radius = max(1, min(math.ceil(3 * BLUR_HIGH * width / 224), (width - 1) // 2))
    offset = torch.arange(-radius, radius + 1, device=images_BCHW.device, dtype=images_BCHW.dtype)
    kernel = torch.exp(-(offset**2) / (2 * sigma_B[:, None] ** 2))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    # Groups give each image its own kernel in one call; a Gaussian is a row filter after a column filter.
    x = F.pad(images_BCHW.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
    x = F.conv2d(x, kernel[:, :, None], groups=batch * channels)
    return F.conv2d(x, kernel[:, :, :, None], groups=batch * channels).view_as(images_BCHW)
