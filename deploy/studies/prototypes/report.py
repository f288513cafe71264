"""Pictures of prototypes that people look at, and how two feature spaces differ in what they call prototypical."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.report import plots
from deploy.studies.prototypes.job import prototype_rows
from deploy.studies.prototypes.page import write_prototype_page
from scoring import Prototypes
from scoring.temperature import DistanceProfile

TEMPERATURES = np.geomspace(0.01, 1.0, 40)
"""The paper's figure spans .01 to .6."""
NEAREST_SHARE = 0.1
"""Samples that count as the most prototypical."""


def write_score_pictures(folder: Path, index_path: Path, prototypes: Prototypes, *, size: int, title: str) -> list[str]:
    """Draw prototypes.html, prototypes.png, distances.png and temperature.png.

    Args:
        folder: where to.
        index_path: index.parquet.
        prototypes: what was found.
        size: side of the crop that was scored, for prototypes.png.
        title: heading of the page.

    Returns:
        The files.
    """
    page, rows, histogram, temperature = (
        folder / name for name in ("prototypes.html", "prototypes.png", "distances.png", "temperature.png")
    )
    write_prototype_page(page, index_path, prototypes, title=title)
    plots.prototypes(rows, rows=prototype_rows(index_path, prototypes, size=size))
    plots.distances(histogram, distance=prototypes.distance)
    plots.curves(
        temperature,
        series={name: (TEMPERATURES.tolist(), sizes) for name, sizes in size_by_temperature(prototypes).items()},
        x="temperature",
        y="effective dataset size",
    )
    return [str(path) for path in (page, rows, histogram, temperature)]


def size_by_temperature(prototypes: Prototypes) -> dict[str, list[float]]:
    """Effective size at each of TEMPERATURES, by direction (Fig. 3 of the paper, for this data set)."""
    profile = DistanceProfile(prototypes.distance)
    return {
        name: [profile.effective_size(float(temperature), name) for temperature in TEMPERATURES]
        for name in ("prototypical", "hard")
    }


def compare(files: Sequence[Path], picture: Path) -> dict[str, Any]:
    """How much feature spaces agree on who is prototypical.

    Args:
        files: two or more files of `tempera score` on the same data.
        picture: PNG to write.

    Returns:
        "names", "rank_correlation" (Spearman) and "nearest_overlap" (share of the nearest tenth of one that is in the
        nearest tenth of the other), both [n][n]; chance is 0 and a tenth.

    Raises:
        ValueError: if they are of different data, or fewer than two.
    """
    loaded = [Prototypes.load(path) for path in files]
    of = {(len(prototypes.distance), prototypes.fingerprint) for prototypes in loaded}
    if len(loaded) < 2 or len(of) > 1:
        raise ValueError(
            f"--compare needs two or more prototype files of the same data; got {len(loaded)} of {len(of)} data sets. "
            "Score one index in several feature spaces, each with an --out of its own."
        )
    names = _short_names(files)
    ranks = np.stack([_ranks(prototypes.distance) for prototypes in loaded])
    correlation = np.corrcoef(ranks)
    count = max(1, round(NEAREST_SHARE * ranks.shape[1]))
    nearest = np.stack([np.argsort(row, kind="stable")[:count] for row in ranks])
    shared = np.array([[len(np.intersect1d(one, other)) / count for other in nearest] for one in nearest])
    plots.overlap(picture, names=names, share=shared, title="share of the nearest tenth in common (chance: 0.10)")
    return {"names": names, "rank_correlation": correlation.tolist(), "nearest_overlap": shared.tolist()}


def _ranks(distance: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks, the mean rank for equal values."""
    values, inverse, counts = np.unique(distance, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean = last - (counts - 1) / 2.0
    assert len(mean) == len(values), "one rank a value"
    return np.asarray(mean[inverse], dtype=np.float64)


def _short_names(files: Sequence[Path]) -> list[str]:
    """Stems, with their folders where stems are equal."""
    stems = [path.stem for path in files]
    return stems if len(set(stems)) == len(stems) else [f"{path.parent.name}/{path.stem}" for path in files]
