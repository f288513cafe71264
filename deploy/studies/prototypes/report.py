"""Pictures and pages of prototypes for people, and the agreement of feature spaces.

`write_score_pictures` draws a data set's prototypes and writes prototypes.html: one row a cluster, its images from
nearest to the prototype to farthest; a text filters by cluster, class or key, a slider zooms, a click enlarges. The
page loads nothing, which its own policy enforces, and everything from the data is escaped. `compare` measures how much
several files of prototypes agree.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from deploy.report import plots
from loader import ShardIndex
from loader.sweep import evaluation_transform, sweep
from scoring import Prototypes
from scoring.temperature import DistanceProfile

TEMPERATURES = np.geomspace(0.01, 1.0, 40)
"""The paper's figure spans .01 to .6."""
NEAREST_SHARE = 0.1
"""Share of the samples that count as the most prototypical."""
PICTURE_CLUSTERS, PICTURE_IMAGES = 12, 14
"""Rows and columns of prototypes.png."""
PAGE_CLUSTERS, PAGE_IMAGES = 200, 16
THUMBNAIL, QUALITY = 64, 85

STYLE = """
:root { color-scheme: light dark; --side: 64px; --soft: #888; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.2rem; }
header { position: sticky; top: 0; left: 0; width: calc(100vw - 4rem); background: Canvas; padding: .4rem 0 .7rem;
  display: flex; gap: 1.4rem; flex-wrap: wrap; align-items: center; z-index: 1; }
h1 { font-size: 1.2rem; margin: 0; }
input[type=search] { min-width: 18rem; padding: .3rem .5rem; font: inherit; }
section { display: flex; gap: .6rem; align-items: center; padding: .25rem 0; border-top: 1px solid #8883;
  width: max-content; min-width: 100%; }
section > div.name { flex: 0 0 7rem; font-size: .85rem; overflow-wrap: anywhere; position: sticky; left: 0;
  background: Canvas; }
section > div.images { display: flex; gap: 3px; }
section > div.images img { flex: none; }
.soft { color: var(--soft); }
img { width: var(--side); height: var(--side); object-fit: cover; border-radius: 3px; cursor: zoom-in; }
.off { display: none; }
dialog img { width: min(80vmin, 512px); height: auto; image-rendering: pixelated; cursor: zoom-out; }
dialog p { margin: .4rem 0 0; overflow-wrap: anywhere; }
"""

SCRIPT = """
const find = document.getElementById('find'), zoom = document.getElementById('zoom');
const seen = document.getElementById('seen'), large = document.getElementById('large');
function filter() {
  const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let rows = 0;
  for (const row of document.querySelectorAll('section')) {
    const own = row.dataset.name.toLowerCase();
    let shown = 0;
    for (const image of row.querySelectorAll('img')) {
      const text = own + ' ' + image.title.toLowerCase();
      const hit = words.every(word => text.includes(word));
      image.classList.toggle('off', !hit);
      shown += hit;
    }
    row.classList.toggle('off', !shown);
    rows += shown > 0;
  }
  seen.textContent = rows;
}
find.addEventListener('input', filter);
zoom.addEventListener('input', () => document.documentElement.style.setProperty('--side', zoom.value + 'px'));
document.addEventListener('click', event => {
  if (event.target.closest('dialog')) { large.close(); return; }
  if (event.target.tagName !== 'IMG') return;
  large.querySelector('img').src = event.target.src;
  large.querySelector('p').textContent = event.target.title;
  large.showModal();
});
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_score_pictures(folder: Path, index_path: Path, prototypes: Prototypes, *, size: int, title: str) -> list[str]:
    """Write prototypes.html, prototypes.png, distances.png and temperature.png, and return their paths.

    `size` is the side of the crop that was scored, which prototypes.png shows.
    """
    page, rows, histogram, temperature = (
        folder / name for name in ("prototypes.html", "prototypes.png", "distances.png", "temperature.png")
    )
    write_prototype_page(page, index_path, prototypes, title=title)
    picked = pick_members(prototypes, clusters=PICTURE_CLUSTERS, images=PICTURE_IMAGES)
    images = _crops(index_path, picked, size)
    plots.prototypes(
        rows, rows=[(f"{row.cluster} ({row.members})", np.stack([next(images) for _ in row.ids])) for row in picked]
    )
    plots.distances(histogram, distance=prototypes.distance)
    plots.curves(
        temperature,
        series={name: (TEMPERATURES.tolist(), sizes) for name, sizes in size_by_temperature(prototypes).items()},
        x="temperature",
        y="effective dataset size",
    )
    return [str(path) for path in (page, rows, histogram, temperature)]


@dataclass(frozen=True, kw_only=True, slots=True)
class PickedMembers:
    """Some members of one cluster."""

    cluster: int
    members: int
    """Number of all its members."""
    ids: NDArray[np.int64]
    """The picked ones, from nearest to farthest."""


def pick_members(prototypes: Prototypes, *, clusters: int, images: int) -> list[PickedMembers]:
    """Return the largest clusters, with members of each taken evenly from the nearest to the farthest."""
    sizes = np.bincount(prototypes.cluster, minlength=len(prototypes.centroids))
    # Stable sorts: equal sizes and distances stay in order of id, so that two pages of one file are equal.
    shown = np.argsort(-sizes, kind="stable")[:clusters]
    rows = []
    for cluster in shown[sizes[shown] > 0]:
        members = np.flatnonzero(prototypes.cluster == cluster)
        members = members[np.argsort(prototypes.distance[members], kind="stable")]
        picked = members[np.linspace(0, len(members) - 1, min(images, len(members))).round().astype(np.int64)]
        rows.append(PickedMembers(cluster=int(cluster), members=len(members), ids=picked))
    return rows


def write_prototype_page(path: Path, index_path: Path, prototypes: Prototypes, *, title: str) -> None:
    """Write the HTML page of a data set's clusters."""
    index, picked = ShardIndex.load(index_path), pick_members(prototypes, clusters=PAGE_CLUSTERS, images=PAGE_IMAGES)
    images, sections = _crops(index_path, picked, THUMBNAIL), []
    for row in picked:
        shown = ""
        for sample in map(int, row.ids):
            label = int(index.label[sample])
            known = 0 <= label < len(index.class_names)
            named = index.class_names[label] if known else f"class {label}" if label >= 0 else ""
            caption = html.escape(f"{index.keys[sample]} {named} distance {prototypes.distance[sample]:.3f}")
            pixels = np.ascontiguousarray(next(images).transpose(1, 2, 0))
            encoded = base64.b64encode(simplejpeg.encode_jpeg(pixels, quality=QUALITY)).decode()
            shown += f'<img loading=lazy alt="" title="{caption}" src="data:image/jpeg;base64,{encoded}">'
        name = f"cluster {row.cluster}"
        sections.append(
            f'<section data-name="{name}"><div class=name>{name}<br><span class=soft>{row.members} samples</span></div>'
            f"<div class=images>{shown}</div></section>"
        )
    rows = "\n".join(sections)
    counted = f"<span id=seen>{len(picked)}</span> of {prototypes.num_clusters} clusters shown"
    page = (
        f'<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><header><h1>{html.escape(title)}</h1>"
        "<input id=find type=search placeholder='cluster, class or key' aria-label='Filter'>"
        f"<label>zoom <input id=zoom type=range min=24 max=192 value={THUMBNAIL}></label><span class=soft>{counted}; "
        "nearest to the prototype on the left, farthest on the right</span></header>\n"
        f"{rows}\n<dialog id=large><img alt=''><p></p></dialog><script>{SCRIPT}</script></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _crops(index_path: Path, picked: Sequence[PickedMembers], size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the evaluation crop of each picked sample in turn, uint8 [3, size, size]."""
    ids = np.concatenate([row.ids for row in picked])
    for _, images, _ in sweep(index_path, evaluation_transform(size), ids=ids):
        yield from images


def size_by_temperature(prototypes: Prototypes) -> dict[str, list[float]]:
    """Return direction -> effective size at each of TEMPERATURES (Fig. 3 of the paper, for this data set)."""
    profile = DistanceProfile(prototypes.distance)
    return {
        name: [profile.effective_size(float(temperature), name) for temperature in TEMPERATURES]
        for name in ("prototypical", "hard")
    }


def compare(files: Sequence[Path], picture: Path) -> dict[str, Any]:
    """Measure how much feature spaces agree on which samples are prototypical.

    Returns:
        "names", "rank_correlation" (Spearman) and "nearest_overlap" (share of the nearest tenth of one that is in the
        nearest tenth of the other), both [n][n]; chance is 0 and a tenth.

    Raises:
        ValueError: fewer than two files, or files of different data.
    """
    loaded = [Prototypes.load(path) for path in files]
    of = {(len(prototypes.distance), prototypes.fingerprint) for prototypes in loaded}
    if len(loaded) < 2 or len(of) > 1:
        raise ValueError(
            f"--compare needs two or more prototype files of the same data; got {len(loaded)} of {len(of)} data sets. "
            "Score one index in several feature spaces, each with an --out of its own."
        )
    stems = [path.stem for path in files]
    # Files of several folders often have the same name, prototypes.parquet: the folder then tells them apart.
    names = stems if len(set(stems)) == len(stems) else [f"{path.parent.name}/{path.stem}" for path in files]
    ranks = np.stack([_ranks(prototypes.distance) for prototypes in loaded])
    correlation = np.corrcoef(ranks)
    count = max(1, round(NEAREST_SHARE * ranks.shape[1]))
    nearest = np.stack([np.argsort(row, kind="stable")[:count] for row in ranks])
    shared = np.array([[len(np.intersect1d(one, other)) / count for other in nearest] for one in nearest])
    plots.overlap(picture, names=names, share=shared, title="share of the nearest tenth in common (chance: 0.10)")
    return {"names": names, "rank_correlation": correlation.tolist(), "nearest_overlap": shared.tolist()}


def _ranks(distance: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ranks from 1, the mean rank for equal values, so that their correlation is Spearman's."""
    _, inverse, counts = np.unique(distance, return_inverse=True, return_counts=True)
    mean = np.cumsum(counts) - (counts - 1) / 2.0
    return np.asarray(mean[inverse], dtype=np.float64)
