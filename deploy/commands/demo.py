"""`tempera demo`: the main job from end to end, on real images, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group

from deploy.console import Answer


def demo(
    *,
    out: Path = Path("runs/demo"),
    images: Path | None = None,
    shards: tuple[str, ...] = (),
    steps: int | None = None,
    seed: int = 0,
) -> Answer:
    """Train on real images while the draw is changed and loaders are scaled and killed; compare with uniform draws.

    Args:
        out: run directory; an earlier demo there is moved aside.
        images: folder with one sub-folder of images a class, instead of the bundled digits.
        shards: WebDataset tars to use as they are, instead of the bundled digits.
        steps: optimizer steps of each of the two trainings.
        seed: seed of data order, crops, masks and weights.
    """
    from deploy.observe.run_log import log_entries, log_table
    from deploy.studies.demo.main import run_demo

    result = run_demo(out, images=images, shards=shards, steps=steps, seed=seed)
    entries = log_entries(result.run, limit=100, changes_only=True)
    end = f"report: {result.report}   ({result.figures.wall_s:.0f} s in all)"
    return Answer(
        data=result.figures.data() | {"run": str(out), "report": str(result.report), "log": entries},
        view=Group(log_table(entries), result.figures.view(), end),
    )
