"""`tempera eval`: what a run's frozen encoder is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from deploy.console import Answer, table
from deploy.rundir import find_run, write_json


def knn(*, run: Path | None = None, index: Path | None = None, test_index: Path | None = None) -> Answer:
    """Cosine 1-NN accuracy of a run's newest checkpoint, with the CLS token and with the mean of the patch tokens.

    Args:
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        index: labelled images that classify; the run's own by default.
        test_index: labelled images to classify; the run's own by default, or leave-one-out where it has none.
    """
    from deploy.config import load_config
    from deploy.probe import NearestNeighbourProbe
    from trainer import load_checkpoint, load_method

    found = find_run(run)
    config = load_config(found.config)
    gallery = index or Path(config.data.index)
    own = None if config.data.test_index is None or index is not None else Path(config.data.test_index)
    probe = NearestNeighbourProbe(gallery, test_index or own, size=config.train.model.image_size)
    step, (_, method) = load_checkpoint(found.path).state["step"], load_method(found.path)
    data = {"run": str(found.path), "step": step, **probe(step, method), "nn_pixels": probe.pixels()}
    found.report.mkdir(exist_ok=True)
    write_json(found.report / "knn.json", data)
    return Answer(data=data, view=table("cosine 1-NN accuracy", ("", ""), list(data.items())))


def export(
    *, out: Path, run: Path | None = None, weights: Literal["encoder", "teacher", "average"] = "encoder"
) -> Answer:
    """Write a run's encoder as a timm state dict: encoder.safetensors, and encoder.json that says how to build it.

    Args:
        out: folder to write into.
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        weights: the trained encoder, the method's teacher, or the moving average of the weights.
    """
    from trainer.export import export_timm

    path = export_timm(find_run(run).path, out, weights=weights)
    return Answer(data={"weights": str(path), "description": str(out / "encoder.json")}, view=f"written: {path}")
