"""Evaluations over whole trainings: fine-tuning, and how fast curves rise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deploy.commands.evaluate.frozen import answer
from deploy.commands.evaluate.target import OWN_ENCODER, OWN_IMAGES, Encoder, Images, changed
from deploy.console import Answer, progress_bar, table
from deploy.runs.rundir import RunDir


def finetune(
    what: Annotated[Encoder, arg(name="")] = OWN_ENCODER,
    images: Annotated[Images, arg(name="")] = OWN_IMAGES,
    *,
    recipe: str = "mae",
    test_epochs: int = 1,
    set: tuple[str, ...] = (),
) -> Answer:
    """Fine-tune the whole encoder by a paper's recipe; an interrupted one is continued.

    Args:
        what: the encoder.
        images: the images.
        recipe: mae, mae_l, mae_h, simmim, bootmae, conmim, prototypes, mto_mae, ...; a wrong name lists all.
        test_epochs: epochs between tests.
        set: fields of the recipe to change, as in --set epochs=20 batch=256.
    """
    from trainer.config import choose
    from trainer.evaluate.finetune import finetune as train_all
    from trainer.evaluate.recipes import FINETUNE

    config = changed(choose(recipe, FINETUNE, "recipe"), set)
    train, test = images.both(what)
    pretrained = what.load()
    with progress_bar(f"fine-tuning ({recipe})") as advance:
        figures = train_all(
            pretrained,
            train,
            test,
            config,
            device=what.place(),
            image_size=what.image_size,
            evaluate_epochs=test_epochs,
            directory=what.folder() / f"finetune-{recipe}",
            progress=advance,
        )
    data = {"encoder": pretrained.name, "recipe": recipe, "bad_images": len(train.bad) + len(test.bad), **figures}
    return answer(what, "finetune", f"fine-tuning of {pretrained.name}", data)


def rauc(
    baseline: Positional[Path],
    method: Positional[Path],
    *,
    metric: str = "nn_cls",
    start: float | None = None,
    end: float | None = None,
) -> Answer:
    """How much faster a method's accuracy rises than a baseline's: the ratio of areas of two runs' curves.

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
    """(epoch, value) of a run's metric."""
    from deploy.runs.config import load_config

    run = RunDir(path).require()
    steps = load_config(run.config).train.epoch_steps or 1
    curve = [(line["step"] / steps, line[metric]) for line in run.metric_lines() if line.get(metric) is not None]
    if not curve:
        raise ValueError(
            f"{path} has no {metric!r} in metrics.jsonl. Train with --set evaluate_every=N, or name another."
        )
    return curve
