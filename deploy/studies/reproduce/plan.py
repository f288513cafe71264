"""From a claim's arms to the runs that train them: one model and length for all, planned once.

1. `make_plans` fixes the number of epochs: the one of an earlier plan, the one asked for, or as many as the budget pays
   for by a measured step. The plan is written before the first arm trains.
2. `run_config` turns an arm into the run that trains it: the small vision transformer of CIFAR's size.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig, RunConfig, TrainersConfig
from deploy.runs.rundir import RunDir, RunError, write_json
from deploy.studies.reproduce.claims import Arm
from loader import FleetConfig, Transform
from scoring import CurriculumConfig
from trainer import TrainConfig, model_size
from trainer.config import Precision
from trainer.progress import total_steps

PROBE_STEPS = 24
TRAINING_SHARE = 0.8
"""Share of the budget for training; the rest is for scoring and evaluation."""
PASS_COST = 0.47
"""Time of a PASS arm relative to one that trains on all: it trains on .37 of the images, its rounds cost about .1."""
PASS_FULL_SHARE, PASS_PREDICTOR_SHARE = 0.1, 0.15
"""PASS selects first after a tenth of the epochs (20 of 200), and trains its predictor in 3 of 20 epochs."""
KEEP_FOR_BUDGET = 0.3
"""rho, which makes the whole run cost 37 %: .1 + .9 * .3 (METHODS section 7)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Model and length that all arms of a study have in common."""

    samples: int
    """Training images."""
    epochs: int
    """Passes over them, for an arm that trains on all."""
    global_batch: int = 256
    """Images of a step."""
    size: str = "tiny"
    """A name in trainer.SIZES."""
    base_lr: float = 1.5e-3
    """Peak learning rate for 256 images."""
    precision: Precision = "auto"
    """bf16 trains a third faster on CPUs that have matrix units for it, and many times slower on those without."""
    evaluations: int = 6
    """Points of an arm's curve of accuracy while it trains; 0 for none."""

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch; the last partial batch is dropped."""
        return max(1, self.samples // self.global_batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A claim's study. Its scale is fixed when it begins; seeds and arms may be added."""

    claim: str
    """A name in CLAIMS."""
    seeds: int
    """Each arm trains with the seeds 0 .. seeds - 1."""
    arms: tuple[str, ...]
    scale: Scale


def make_plans(
    out: Path,
    claims: Mapping[str, Sequence[Arm]],
    *,
    seeds: int,
    scale: Scale,
    data: DataConfig,
    budget_minutes: float,
    epochs: int | None,
    workers: int = 1,
) -> dict[str, Plan]:
    """Return the plans that the claims' folders in `out` hold, or new ones; all claims train equally long.

    `claims` maps the name of a claim's folder to its arms; `scale` holds everything but the epochs. Without `epochs`,
    and where no folder holds a plan, they follow from the budget by a probe on `data`, for `workers` arms at a time.

    Raises:
        RunError: a folder holds a study of another scale, or the budget does not pay for one epoch.
    """
    paths = {name: out / name / "plan.json" for name in claims}
    begun: dict[str, Scale] = {}
    for name, path in paths.items():
        if path.is_file():
            begun[name] = Scale(**json.loads(path.read_text())["scale"])
    # Without --epochs a study that has begun keeps its own, so that a budget is not measured a second time.
    if epochs is None and begun:
        epochs = next(iter(begun.values())).epochs
    if epochs is None:
        # Arms that several claims share train once, whatever each claim calls them.
        different = {repr(replace(arm, name="", paper={})): arm for arms in claims.values() for arm in arms}
        epochs = _affordable_epochs(list(different.values()), seeds, scale, data, budget_minutes * workers)
    whole = replace(scale, epochs=epochs)
    for name, scale_before in begun.items():
        if scale_before != whole:
            raise RunError(
                f"{paths[name].parent} holds a study of another model or length ({paths[name]}). Take another --out, "
                "or remove it."
            )
    # Written anew each time, since seeds and arms may have been added.
    plans = {}
    for name, arms in claims.items():
        plans[name] = Plan(claim=name, seeds=seeds, arms=tuple(arm.name for arm in arms), scale=whole)
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        write_json(paths[name], asdict(plans[name]))
    return plans


def _affordable_epochs(arms: Sequence[Arm], seeds: int, scale: Scale, data: DataConfig, minutes: float) -> int:
    """Return the epochs that the minutes pay for, by the speed of MAE on uniform draws on this machine."""
    probe = run_config(Arm(name="probe"), data=data, scale=replace(scale, epochs=1), seed=0)
    train = replace(probe.train, total_steps=PROBE_STEPS, warmup_steps=0, log_every=1, checkpoint_every=0)
    with tempfile.TemporaryDirectory(prefix="tempera-probe-") as folder:
        run = RunDir(Path(folder) / "run")
        launch_in_process(replace(probe, train=train, evaluate_every=0), run)
        rates = [line["images_per_s"] for line in run.metric_lines() if "images_per_s" in line]
    # The first half warms up: compilation, caches, the loader's prefetch.
    step_s = scale.global_batch / float(statistics.median(rates[PROBE_STEPS // 2 :]))
    cost = sum((PASS_COST if "pass_" in arm.model else 1.0) * arm.cost for arm in arms)
    epoch_s = step_s * scale.epoch_steps * cost * seeds
    epochs = math.floor(TRAINING_SHARE * minutes * 60 / epoch_s)
    if epochs < 1:
        raise RunError(
            f"--budget must pay for one epoch of every arm, about {epoch_s / 60 / TRAINING_SHARE:.0f} minutes here; "
            f"got {minutes:g}. Give more, or fewer --samples or --seeds."
        )
    return epochs


def run_config(arm: Arm, *, data: DataConfig, scale: Scale, seed: int) -> RunConfig:
    """Return the run that trains an arm; `seed` decides weights, masks, draws and crops."""
    fields = dict(arm.model)
    if "pass_" in fields:
        # PASS counts epochs: its schedule is stretched to the run.
        period = max(1, round(PASS_FULL_SHARE * scale.epochs))
        schedule = {
            "full_epochs": period,
            "period": period,
            "predictor_epochs": max(1, round(PASS_PREDICTOR_SHARE * period)),
            "predictor_depth": 2,
            "keep": KEEP_FOR_BUDGET,
        }
        fields["pass_"] = schedule | dict(fields["pass_"])
    model = model_size(scale.size, **fields)
    settings = model.pass_
    # With PASS an epoch after a selection has fewer steps: the length is the same in epochs, not in steps.
    steps = (
        total_steps(scale.samples, scale.global_batch, scale.epochs, settings)
        if settings.enabled
        else scale.epochs * scale.epoch_steps
    )
    train = TrainConfig(
        method=arm.method,
        model=model,
        total_steps=steps,
        global_batch=scale.global_batch,
        epoch_steps=scale.epoch_steps,
        base_lr=scale.base_lr,
        precision=scale.precision,
        warmup_steps=steps // 10,
        window_steps=8,
        seed=seed,
        # Some 200 points a curve, and only the newest checkpoint: it is what a resume and the evaluation need.
        log_every=max(1, steps // 200),
        checkpoint_every=max(1, steps // 4),
        keep_checkpoints=1,
    )
    return RunConfig(
        name=f"{arm.name.replace('.', '_')}-{seed}",
        data=DataConfig(
            index=data.index,
            prototypes=data.prototypes,
            test_index=data.test_index,
            transform=Transform(size=model.image_size),
        ),
        train=train,
        curriculum=CurriculumConfig(policy=arm.policy, schedule=arm.schedule, start=arm.start, end=arm.end),
        fleet=FleetConfig(loaders=1),
        trainers=TrainersConfig(),
        evaluate_every=math.ceil(steps / scale.evaluations) if scale.evaluations else 0,
    )
