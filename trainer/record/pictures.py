"""Pictures of a method at work: reconstructions, learned masks, the predictor's map, affinities of masked tokens.

`Pictures` is an `on_evaluate` hook that writes the pictures that a method has, so that the same images are seen at the
start, in the middle and at the end of a run. All use one fixed random mask, so that pictures differ by the weights
alone.

Shapes: B batch, N patches, V visible, M masked, H W image, P values of a patch.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import TrainConfig
from trainer.masking import Mask, shrink_mask
from trainer.methods.base import Method, PixelMethod, SelectingMethod
from trainer.methods.clmae import Clmae
from trainer.methods.simmim import Simmim
from trainer.models.vit import patchify, unpatchify
from trainer.mto import MtoObserver, Split, similarity
from trainer.randomness import StepRandomness
from trainer.record.metrics import read_metrics
from trainer.step import normalise

_CELL_INCHES = 1.4
_GREY = 0.5  # of a hidden patch, in [0, 1]


class Pictures:
    """Writes the pictures of a run's method whenever it is called, one row for each of the uint8[B, 3, H, W] images."""

    def __init__(self, config: TrainConfig, images_u8: NDArray[np.uint8], out_dir: str | Path) -> None:
        self.config, self.out_dir = config, Path(out_dir)
        self.images_u8 = torch.as_tensor(np.asarray(images_u8))

    def __call__(self, step: int, method: Method) -> None:
        """Write `step-00000100-<name>.png` for each picture that the method has."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        training = method.training
        method.eval()
        with torch.no_grad():
            for name, columns in draw(method, self.config, self.images_u8).items():
                save_whole(grid(columns), self.out_dir / f"step-{step:08d}-{name}.png", dpi=100)
        method.train(training)


def save_whole(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a figure as PNG beside its place and rename it there: a reader finds a whole picture or none.

    A page that lists `*.png` does not see the unfinished file.
    """
    aside = path.with_name(f".{path.name}.tmp")
    figure.savefig(aside, dpi=dpi, format="png")
    aside.replace(path)


Columns = dict[str, NDArray[Any]]


def draw(method: Method, config: TrainConfig, images_u8: Tensor) -> dict[str, Columns]:
    """Return the pictures that a method has, by name; each is columns by title, of images or maps of one per sample."""
    device = next(method.parameters()).device
    images = normalise(images_u8.to(device), config)
    pictures: dict[str, Columns] = {}
    shown = _visible(method, images)
    if isinstance(method, PixelMethod):
        # One seed for all steps and runs: pictures differ by the weights alone.
        mask = method.draw_mask(len(images), StepRandomness(seed=0, step=0), like=images)
        pictures["reconstructions"] = reconstructions(method, images, mask)
        if method.config.mto.enabled:
            pictures["affinity"] = affinities(method, images, mask)
    # A learned map beside the mask that it leads to.
    if isinstance(method, Clmae):
        keep_BN = method.keep_probability(images)
        seen = _grey(method, images, method.learned_mask(keep_BN))
        pictures["masks"] = {"image": shown, "keep probability": _map(keep_BN), "seen": seen}
    if isinstance(method, SelectingMethod) and method.predictor is not None:
        loss_BN = method.difficulty(images)
        seen = _grey(method, images, method.difficulty_mask(loss_BN))
        pictures["predictor"] = {"image": shown, "predicted loss": _map(loss_BN), "seen": seen}
    return pictures


def reconstructions(method: PixelMethod, images: Tensor, mask: Mask) -> Columns:
    """Return the image, its visible patches, and the image with the hidden patches as predicted."""
    patches_BNP = patchify(images, method.stride if isinstance(method, Simmim) else method.config.patch_size)
    predicted_BNP = method.to_pixels(method.predict(images, mask), patches_BNP)
    hidden = mask.mask_BN[:, :, None].to(patches_BNP.dtype)
    filled_BNP = patches_BNP * (1 - hidden) + predicted_BNP * hidden
    side = round((patches_BNP.shape[-1] / 3) ** 0.5)
    return {
        "image": _visible(method, images),
        "seen": _grey(method, images, mask),
        "predicted": _visible(method, unpatchify(filled_BNP, side)),
    }


def affinities(method: PixelMethod, images: Tensor, mask: Mask) -> Columns:
    """Return the image and, in three layers, the share of masked tokens' similarity that each visible one has."""
    taps: list[TokenTap] = []  # one for each decoder; the first is shown

    def tap(split: Split) -> MtoObserver:
        taps.append(TokenTap(method.config.mto, split))
        return taps[-1]

    # nn.Module would register it; the instance attribute shadows the method's own and is deleted after.
    object.__setattr__(method, "observer", tap)
    try:
        method.reconstruct(images, mask)
    finally:
        object.__delattr__(method, "observer")
    layers = taps[0].layers
    columns: Columns = {"image": _visible(method, images)}
    for layer in sorted({0, len(layers) // 2, len(layers) - 1}):
        masked, visible = layers[layer]
        # The attention-like softmax whose entropy MTO calls heterogeneity (Eq. 2), averaged over the masked tokens.
        share_BV = similarity(masked, visible, method.config.mto).softmax(dim=-1).mean(dim=1)
        merged = math.isqrt(mask.visible_BV.shape[1] // visible.shape[1])  # patches along a side of a Swin's token
        shown = shrink_mask(mask, merged)
        map_BN = share_BV.new_full(shown.mask_BN.shape, torch.nan).scatter(1, shown.visible_BV, share_BV)
        columns[f"layer {layer}"] = _map(map_BN)
    return columns


class TokenTap(MtoObserver):
    """An observer that keeps the masked and visible tokens of every layer."""

    def __init__(self, config: Any, split: Split) -> None:
        super().__init__(config, split)
        self.layers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, tokens_BTD: Tensor) -> None:
        super().__call__(tokens_BTD)
        self.layers.append(self.split(tokens_BTD))


def heterogeneity_plot(metrics_path: str | Path, *, lines: int = 3) -> Figure | None:
    """Return a plot of the heterogeneity by layer at some steps of a run, or None if the run logged none."""
    logged = [line for line in read_metrics(metrics_path) if "heterogeneity_00" in line]
    if not logged:
        return None
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for place in np.unique(np.linspace(0, len(logged) - 1, lines).round().astype(int)):
        line = logged[place]
        values = [line[name] for name in sorted(line) if name.startswith("heterogeneity_") and name.count("_") == 1]
        axes.plot(range(len(values)), values, marker="o", label=f"step {line['step']}")
    axes.set(xlabel="layer", ylabel="heterogeneity (nats)")
    axes.legend()
    return figure


def grid(columns: Columns) -> Figure:
    """Return a figure with one row a sample and one column a title; maps of shape [side, side] are shown in colour."""
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(_CELL_INCHES * len(columns), _CELL_INCHES * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, values) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=8)
        for row in range(rows):
            axes[row, column].imshow(values[row], cmap="viridis", interpolation="nearest")
            axes[row, column].set_axis_off()
    return figure


def _visible(method: Method, images: Tensor) -> NDArray[Any]:
    """Return normalised images as [B, H, W, 3] in [0, 1]."""
    shift, scale = (images.new_tensor(values).view(3, 1, 1) for values in (method.pixel_mean, method.pixel_std))
    return (images * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).detach().float().cpu().numpy()


def _grey(method: Method, images: Tensor, mask: Mask) -> NDArray[Any]:
    """Return normalised images as `_visible` does, with the hidden patches grey."""
    hidden = _map(mask.mask_BN)
    scale = images.shape[-1] // hidden.shape[-1]
    cover = hidden.repeat(scale, axis=1).repeat(scale, axis=2)[..., None]
    return np.where(cover > 0, _GREY, _visible(method, images))


def _map(values_BN: Tensor) -> NDArray[Any]:
    """Return values of the patches of a square grid as maps, float32[B, side, side]."""
    side = round(values_BN.shape[1] ** 0.5)
    return values_BN.view(-1, side, side).detach().float().cpu().numpy()
