"""`tempera bench`: figures of this machine, as ratios inside one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rich.console import Group

from deploy.console import Answer, progress_bar, say, table


def loader(*, images: Path, peers: bool = False, device: Literal["cpu", "cuda"] = "cpu") -> Answer:
    """Measure images per second, from raw JPEG decoding to the whole service.

    Args:
        images: folder of images, folder of tars, or a tar.
        peers: measure the other loaders that are installed, too.
        device: cpu, or cuda for a sweep of the GPU decoder's settings.
    """
    from loader.bench.images import bench_loader

    data = bench_loader(images, peers=peers, device=device, progress=lambda what: say(f"  measuring {what}"))
    if device == "cuda":
        names = ("threads", "hw_decoder_load", "images_per_s", "host_cpus", "gpu_memory_mb")
        rows = [tuple(point[name] for name in names) for point in data["gpu"]]
        return Answer(data=data, view=table("DALI on the GPU", names, rows))
    figures = _flat({name: part for name, part in data.items() if name not in ("index", "cache_hit_rate")})
    rated = table(
        "images/s",
        ("loader", "images/s", "of raw decode"),
        [(name, round(value), f"{value / data['raw_decode']:.2f}") for name, value in figures],
    )
    more = _flat({"cache_hit_rate": data["cache_hit_rate"], **data["index"]})
    others = table("cache and index", ("figure", "value"), more)
    return Answer(data=data, view=Group(rated, others))


def trainer(*, device: Literal["cpu", "cuda", "auto"] = "cpu") -> Answer:
    """Measure training steps against the same models written plainly.

    Args:
        device: where to measure; cuda measures the sizes and targets of a large GPU.
    """
    from trainer.bench.step import bench_trainer

    with progress_bar("measuring training steps") as advance:
        data = bench_trainer(device=device, progress=advance)
    names = ("method", "size", "batch", "images_per_s", "plain_images_per_s", "ratio", "mfu", "peak_memory_bytes")
    rows = [tuple(row.get(name) for name in names) for row in data["rows"]]
    targets = [(name, found["value"], found["limit"], found["met"]) for name, found in data["targets"].items()]
    views = (
        table(f"{data['device']}: ours against the plain form", names, rows),
        table("ratios", ("figure", "value"), _flat(data["ratios"])),
    )
    return Answer(data=data, view=Group(*views, table("targets", ("what", "value", "limit", "met"), targets)))


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested figures as (dotted name, value) rows."""
    rows: list[tuple[str, Any]] = []
    for name, value in data.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows
