"""`tempera export`: a run's encoder for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from deploy.console import Answer, working
from deploy.runs.rundir import find_run


def export(
    *, out: Path, run: Path | None = None, weights: Literal["encoder", "teacher", "average"] = "encoder"
) -> Answer:
    """Write a run's encoder as a timm state dict: encoder.safetensors, and encoder.json that says how to build it.

    Args:
        out: folder to write into.
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        weights: the trained encoder, the method's teacher, or the moving average of the weights.
    """
    from trainer.record.export import export_timm

    with working("writing the encoder"):
        path = export_timm(find_run(run).path, out, weights=weights)
    return Answer(data={"weights": str(path), "description": str(out / "encoder.json")}, view=f"written: {path}")
