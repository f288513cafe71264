"""report/prototypes.html: the clusters of a data set to look through, one file that needs nothing else.

Each row is a cluster, its images from nearest to the prototype to farthest. A text filters by cluster, class or key, a
slider zooms, a click shows one image large. Everything that comes from the data is escaped, and the page's own policy
forbids it to load anything.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from deploy.studies.prototypes.features import Images
from deploy.studies.prototypes.job import PickedMembers, picked_members
from loader import ShardIndex
from scoring import Prototypes

CLUSTERS, IMAGES = 200, 16
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


def write_prototype_page(path: Path, index_path: Path, prototypes: Prototypes, *, title: str) -> None:
    """Write the page.

    Args:
        path: HTML file to write.
        index_path: index.parquet.
        prototypes: what `tempera score` found.
        title: heading.
    """
    index, picked = ShardIndex.load(index_path), picked_members(prototypes, clusters=CLUSTERS, images=IMAGES)
    thumbnails = _thumbnails(index_path, np.concatenate([row.ids for row in picked]))
    rows = "\n".join(_row(row, index, prototypes, thumbnails) for row in picked)
    shown = f"<span id=seen>{len(picked)}</span> of {prototypes.num_clusters} clusters shown"
    page = (
        f'<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><header><h1>{html.escape(title)}</h1>"
        "<input id=find type=search placeholder='cluster, class or key' aria-label='Filter'>"
        f"<label>zoom <input id=zoom type=range min=24 max=192 value={THUMBNAIL}></label><span class=soft>{shown}; "
        "nearest to the prototype on the left, farthest on the right</span></header>\n"
        f"{rows}\n<dialog id=large><img alt=''><p></p></dialog><script>{SCRIPT}</script></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _row(row: PickedMembers, index: ShardIndex, prototypes: Prototypes, thumbnails: Iterator[str]) -> str:
    name = f"cluster {row.cluster}"
    images = "".join(
        f'<img loading=lazy alt="" title="{html.escape(_caption(int(sample), index, prototypes))}" '
        f'src="data:image/jpeg;base64,{thumbnail}">'
        for sample, thumbnail in zip(row.ids, thumbnails, strict=False)
    )
    return (
        f'<section data-name="{name}"><div class=name>{name}<br><span class=soft>{row.members} samples</span></div>'
        f"<div class=images>{images}</div></section>"
    )


def _caption(sample: int, index: ShardIndex, prototypes: Prototypes) -> str:
    label = int(index.label[sample])
    named = index.class_names[label] if 0 <= label < len(index.class_names) else f"class {label}" if label >= 0 else ""
    return f"{index.keys[sample]} {named} distance {prototypes.distance[sample]:.3f}"


def _thumbnails(index_path: Path, ids: NDArray[np.int64]) -> Iterator[str]:
    """Each sample's image as a JPEG in base64."""
    for images, _ in Images(index_path, THUMBNAIL).batches(ids):
        for image in images:
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            yield base64.b64encode(simplejpeg.encode_jpeg(pixels, quality=QUALITY)).decode()
