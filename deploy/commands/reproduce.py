"""`tempera reproduce`: measure a paper's claim on your own images, at a size that fits the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Group
from rich.table import Table
from tyro.conf import Positional

from deploy.console import Answer, table, working

if TYPE_CHECKING:
    from deploy.studies.reproduce.claims import Claim
    from deploy.studies.reproduce.plan import Plan
    from deploy.studies.reproduce.queue import Queue
    from deploy.studies.reproduce.study import Study


def reproduce(
    claims: Positional[tuple[str, ...]],
    *,
    data: Path,
    out: Path = Path("runs/reproduce"),
    budget: float = 60.0,
    epochs: int | None = None,
    seeds: int = 2,
    samples: int | None = None,
    test_samples: int | None = None,
    evaluations: int = 6,
    batch: int = 256,
    size: str = "tiny",
    lr: float = 1.5e-3,
    precision: Literal["auto", "float32", "bf16"] = "auto",
    workers: int | None = None,
    sweep: bool = False,
    only: tuple[str, ...] = (),
) -> Answer:
    """Train the arms of papers' comparisons, evaluate them, and report which directions hold.

    The same command continues an interrupted study, also with more seeds or arms. Arms that claims share train once.

    Args:
        claims: one or several of prototypes, temperature, hard, features, clusters, pass, clmae, mto, fewshot; or all.
        data: folder with train/ and test/, each with one folder of images a class.
        out: folder for all results.
        budget: minutes for all arms and seeds; decides the epochs, from a measured step.
        epochs: passes over the data, instead of a budget.
        seeds: trainings of each arm, 1 or more.
        samples: training images to take, the same number of each class; all by default.
        test_samples: test images to take, likewise; at most 10,000 are used.
        evaluations: points of an arm's curve of accuracy while it trains; each takes as long as training on some
            thousand images. 0 for none; mto needs 3.
        batch: images of a step.
        size: tiny (128 wide, 4 deep) or cifar (192 wide, 12 deep).
        lr: peak learning rate for 256 images.
        precision: auto is bf16 on GPUs that have it; bf16 also pays on CPUs with matrix units for it (AMX), and is many
            times slower on others.
        workers: number of arms that train at a time, as Ray tasks of one CPU each, on the cluster that RAY_ADDRESS
            names or on this machine; without it they train one after the other, in this process.
        sweep: add the papers' ablations.
        only: names of the ablations to add, instead of all.
    """
    from deploy.studies.reproduce.plan import Scale, make_plans
    from deploy.studies.reproduce.queue import in_turn, side_by_side
    from deploy.studies.reproduce.study import Study, prepare_data
    from loader import ShardIndex
    from trainer import model_size
    from trainer.config import require

    require(seeds >= 1, f"--seeds must be 1 or more; got {seeds}.")
    require(evaluations >= 0, f"--evaluations must be 0 or more; got {evaluations}.")
    require(workers is None or workers >= 1, f"--workers must be 1 or more; got {workers}.")
    chosen = chosen_claims(claims, sweep=sweep, only=only)
    # The area below a curve of fewer than three points says nothing of its rise.
    compared = ", ".join(folder for folder, claim in chosen.items() if claim.baseline is not None)
    least = 3 if compared else 0
    require(
        evaluations >= least,
        f"--evaluations must be {least} or more where curves are compared ({compared}); got {evaluations}.",
    )
    model_size(size)  # an unknown size is refused before the shards are written
    folder = f"data-{samples or 'all'}" + (f"-test-{test_samples}" if test_samples else "")
    images = prepare_data(data, out / folder, samples=samples, test_samples=test_samples)
    scale = Scale(
        samples=len(ShardIndex.load(images.index)),
        # A placeholder: the plan decides the epochs.
        epochs=1,
        global_batch=batch,
        size=size,
        base_lr=lr,
        precision=precision,
        evaluations=evaluations,
    )
    with working("measuring a step, to plan the epochs"):
        plans = make_plans(
            out,
            {folder: claim.arms for folder, claim in chosen.items()},
            seeds=seeds,
            scale=scale,
            data=images,
            budget_minutes=budget,
            epochs=epochs,
            workers=workers or 1,
        )
    study = Study(scale=next(iter(plans.values())).scale, seeds=seeds, data=images, out=out)
    return _train_and_report(study, chosen, plans, out=out, queue=side_by_side(workers) if workers else in_turn)


def _train_and_report(
    study: Study, claims: dict[str, Claim], plans: dict[str, Plan], *, out: Path, queue: Queue
) -> Answer:
    """Train the arms that have no outcome yet, and write each claim's report into its folder."""
    from deploy.studies.reproduce.report import write_claim

    study.run([arm for claim in claims.values() for arm in claim.arms], queue=queue)
    with working("neighbours of raw pixels and of untrained weights"):
        floor = study.floor()
    data, views = {}, list[Table | str]()
    for folder, claim in claims.items():
        outcomes = list(study.outcomes(claim.arms))
        written = write_claim(out / folder, plan=plans[folder], claim=claim, outcomes=outcomes, floor=floor)
        data[folder] = written.data
        holds = [(str(judged), judged.holds) for judged in written.judged]
        views.append(table(claim.title, written.columns, written.rows))
        views += [table("does it hold here?", ("direction", "holds"), holds), f"report: {written.page}"]
    return Answer(data=data, view=Group(*views))


def chosen_claims(names: tuple[str, ...], *, sweep: bool, only: tuple[str, ...]) -> dict[str, Claim]:
    """Return folder of each claim -> the claim with the arms to train; an ablated claim has a folder of its own."""
    from deploy.studies.reproduce.claims import CLAIMS
    from trainer.config import choose

    wanted = tuple(CLAIMS) if names == ("all",) else names
    claims = {name: choose(name, CLAIMS, "a claim") for name in wanted}
    if not (sweep or only):
        return claims
    ablations = {arm.name: arm for claim in claims.values() for arm in claim.sweep}
    kept = {choose(name, ablations, "an ablation").name for name in only} or set(ablations)
    return {
        f"{name}-sweep": replace(claim, arms=claim.arms + tuple(arm for arm in claim.sweep if arm.name in kept))
        for name, claim in claims.items()
    }
