"""The pictures of a run, drawn with matplotlib from plain arrays and dictionaries, as PNG files.

Every function takes the file to write and the data; none of them reads a run directory or trains anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainer.record.pictures import save_whole

WARM, COOL, GREY = "#d1495b", "#2e6f95", "#8d99ae"
DPI = 120


@contextmanager
def _axes(path: Path, *, width: float = 7.2, height: float = 3.6) -> Iterator[Axes]:
    """Yield empty axes; save the figure when the block ends. Width and height are in inches."""
    # Not pyplot: it keeps every figure until it is closed, and it may be used by one thread only.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(figure, path, dpi=DPI)


def effective_size(
    path: Path, *, steps: Sequence[int], used: Sequence[float], scheduled: Sequence[float], temperature: Sequence[float]
) -> None:
    """Draw effective dataset size, as used and as scheduled, and temperature; each list has one value for each window.

    Sizes are fractions of the data; a window's step is its first.
    """
    with _axes(path) as axes:
        axes.plot(steps, scheduled, color=GREY, linestyle="--", label="schedule")
        axes.step(steps, used, color=WARM, where="post", label="in force")
        axes.set(xlabel="optimizer step", ylabel="effective dataset size", ylim=(0, 0.7))
        # While effective size grows evenly, temperature grows tenfold and more: it needs a logarithmic axis.
        right = axes.twinx()
        right.spines[["top"]].set_visible(False)
        right.step(steps, temperature, color=COOL, where="post", linewidth=1, label="temperature")
        right.set(ylabel="temperature", yscale="log")
        handles = [*axes.get_lines(), *right.get_lines()]
        axes.legend(handles=handles, loc="lower right", frameon=False)


def curves(path: Path, *, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> None:
    """Draw several curves, name -> (x values, y values), in one plot with the axes' labels `x` and `y`."""
    with _axes(path) as axes:
        for (name, (xs, ys)), color in zip(series.items(), (WARM, COOL, GREY, "#edae49", "#66a182"), strict=False):
            # Points of a short curve, an evaluation every few epochs, must be seen; in a long one they hide the line.
            marker = "o" if len(xs) < 40 else None
            axes.plot(xs, ys, color=color, label=name, marker=marker, markersize=3, linewidth=1.4)
        axes.set(xlabel=x, ylabel=y)
        axes.legend(frameon=False)


def times_drawn(path: Path, *, counts: NDArray[Any], label: str) -> None:
    """Draw a histogram over samples of how often each was drawn, integer[N]."""
    top = int(counts.max(initial=0))
    # One bar for each number of draws, as long as the bars can be told apart.
    bins = np.arange(top + 2) - 0.5 if top < 60 else np.linspace(0, top, 60)
    with _axes(path) as axes:
        axes.hist(counts, bins=bins.tolist(), color=WARM, alpha=0.85, label=label)
        axes.set(xlabel="times drawn", ylabel="samples")
        axes.legend(frameon=False)


def prototypes(path: Path, *, rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
    """Draw one row for each cluster, its images from nearest to farthest from the prototype.

    A row is (label of the cluster, images uint8[n,3,H,W]); n may differ between rows.
    """
    columns = max(len(images) for _, images in rows)
    figure = Figure(figsize=(1.2 + 0.62 * columns, 0.66 * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for (label, images), axes_row in zip(rows, grid, strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for image, axes in zip(images, axes_row, strict=False):  # a small cluster has fewer images than columns
            axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        axes_row[0].text(-0.15, 0.5, label, transform=axes_row[0].transAxes, ha="right", va="center", fontsize=8)
    figure.suptitle("each row one cluster: nearest to the prototype on the left, farthest on the right", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(figure, path, dpi=DPI)


def distances(path: Path, *, distance: NDArray[np.floating[Any]]) -> None:
    """Draw a histogram of the distances of samples to their prototypes, float[N] in [0, 1]."""
    with _axes(path) as axes:
        axes.hist(distance, bins=60, range=(0.0, 1.0), color=COOL, alpha=0.85)
        axes.set(xlabel="distance to the prototype, nearest to farthest of its cluster", ylabel="samples", xlim=(0, 1))


def overlap(path: Path, *, names: Sequence[str], share: NDArray[np.floating[Any]], title: str) -> None:
    """Draw a matrix of shares between named items, float[n, n] in [0, 1], each cell with its figure."""
    side = 1.6 + 1.1 * len(names)
    with _axes(path, width=side + 1.0, height=side) as axes:
        axes.grid(visible=False)
        axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.set_xticks(range(len(names)), labels=list(names), rotation=30, ha="right")
        axes.set_yticks(range(len(names)), labels=list(names))
        for row, values in enumerate(share):
            for column, value in enumerate(values):
                shade = "white" if value > 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade)
        axes.set_title(title, fontsize=9)
