"""`tempera export` and `tempera eval rauc`: write a run's encoder, compare the curves of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deploy.commands.combined import AnyRun
from deploy.console import Answer, table, working
from deploy.runs.rundir import RunDir, find_run


def export(*, out: Path, run: AnyRun = None, weights: Literal["encoder", "teacher", "average"] = "encoder") -> Answer:
    """Write a run's encoder as a timm state dict: encoder.safetensors, and encoder.json with its class and arguments.

    Args:
        out: folder to write into.
        weights: the trained encoder, the method's teacher, or the moving average of the weights.
    """
    from trainer.record.export import export_timm

    with working("writing the encoder"):
        path = export_timm(find_run(run).path, out, weights=weights)
    return Answer(data={"weights": str(path), "description": str(out / "encoder.json")}, view=f"written: {path}")


def rauc(
    baseline: Positional[Path],
    method: Positional[Path],
    *,
    metric: str = "nn_cls",
    start: float | None = None,
    end: float | None = None,
) -> Answer:
    """Measure how much faster a method's accuracy rises than a baseline's: the ratio of the areas of their curves.

    Args:
        baseline: run directory.
        method: run directory; both must have been evaluated at three or more common epochs (evaluate_every).
        metric: a name in metrics.jsonl that is better when larger.
        start: first epoch; the first that both have by default.
        end: last epoch; the last that both have by default.
    """
    from trainer.evaluate.rauc import common_curve
    from trainer.evaluate.rauc import rauc as ratio

    epochs, theirs, ours = common_curve(_curve(baseline, metric), _curve(method, metric))
    value = ratio(epochs, theirs, ours, start=start, end=end)
    data = {"rauc": value, "metric": metric, "epochs": epochs, "baseline": theirs, "method": ours}
    rows = list(zip(epochs, theirs, ours, strict=True))
    return Answer(data=data, view=table(f"RAUC of {metric}: {value:.3f}", ("epoch", baseline.name, method.name), rows))


def _curve(path: Path, metric: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of a run's metric, in the order of the log."""
    from deploy.runs.config import load_config

    run = RunDir(path).require()
    # Curves are compared by epochs: runs may differ in batch, and so in steps.
    steps = load_config(run.config).train.epoch_steps or 1
    curve = [(line["step"] / steps, line[metric]) for line in run.metric_lines() if line.get(metric) is not None]
    if not curve:
        raise ValueError(
            f"{path} has no {metric!r} in metrics.jsonl. Train with --set evaluate_every=N, or name another."
        )
    return curve
