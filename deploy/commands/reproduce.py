"""`tempera reproduce`: measure a paper's claim on one's own images, at a size that fits the machine."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from tyro.conf import Positional

from deploy.console import Answer, table


def reproduce(
    claim: Positional[str],
    *,
    data: Path,
    out: Path = Path("runs/reproduce"),
    budget: float = 60.0,
    epochs: int | None = None,
    seeds: int = 2,
    samples: int | None = None,
    batch: int = 256,
    size: str = "tiny",
    lr: float = 1.5e-3,
    sweep: bool = False,
) -> Answer:
    """Train the arms of a paper's comparison, evaluate them, and say which directions hold.

    The same command goes on where an interrupted study was; arms that claims share are trained once.

    Args:
        claim: prototypes, temperature, hard, features, clusters, pass, clmae, mto or fewshot.
        data: folder with train/ and test/, each with one folder of images a class.
        out: folder for everything that is written.
        budget: minutes for all arms and seeds; decides the epochs, from a measured step.
        epochs: passes over the data, instead of a budget.
        seeds: how often each arm is trained, 1 or more.
        samples: training images to take, the same number of each class; all by default.
        batch: images of a step.
        size: tiny (128 wide, 4 deep) or cifar (192 wide, 12 deep).
        lr: peak learning rate for 256 images.
        sweep: add the paper's ablations.
    """
    from deploy.reproduce import CLAIMS, Study, make_plan
    from deploy.reproduce.arms import Scale
    from deploy.reproduce.data import prepare_data
    from deploy.reproduce.page import table_data, write_page
    from deploy.reproduce.table import cells, rows, verdicts
    from loader import ShardIndex
    from trainer import model_size
    from trainer.config import choose, require

    require(seeds >= 1, f"--seeds must be 1 or more; got {seeds}.")
    chosen = choose(claim, CLAIMS, "a claim")
    arms = chosen.arms + (chosen.sweep if sweep else ())
    images = prepare_data(data, out / f"data-{samples or 'all'}", samples=samples, size=model_size(size).image_size)
    scale = Scale(samples=len(ShardIndex.load(images.index)), epochs=1, global_batch=batch, size=size, base_lr=lr)
    folder = out / (f"{claim}-sweep" if sweep else claim)
    plan = make_plan(
        folder / "plan.json",
        claim=claim,
        arms=arms,
        seeds=seeds,
        scale=scale,
        data=images,
        budget_minutes=budget,
        epochs=epochs,
    )
    study = Study(plan, arms, data=images, out=out)
    outcomes = list(study.run())
    found = cells(outcomes, baseline=chosen.baseline)
    judged, floor = verdicts(chosen, found), study.measure.pixels()
    page = write_page(
        folder, plan=plan, claim=chosen, arms=arms, outcomes=outcomes, found=found, judged=judged, floor=floor
    )
    columns, lines = rows(chosen, arms, found)
    view = Group(
        table(chosen.title, columns, lines),
        table("does it hold here?", ("direction", "holds"), [(str(one), one.holds) for one in judged]),
        f"report: {page}",
    )
    return Answer(data=table_data(plan, chosen, found, judged, floor) | {"report": str(page)}, view=view)
