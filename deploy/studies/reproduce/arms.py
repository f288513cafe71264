"""From an arm to the run that trains it: the small vision transformer of CIFAR's size, and how long it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deploy.runs.config import DataConfig, RunConfig, TrainersConfig
from deploy.studies.reproduce.claims import Arm
from loader import FleetConfig, Transform
from scoring import CurriculumConfig
from trainer import TrainConfig, model_size
from trainer.config import Precision
from trainer.progress import total_steps

PASS_FULL_SHARE, PASS_PREDICTOR_SHARE = 0.1, 0.15
"""PASS selects first after a tenth of the epochs (20 of 200), and trains its predictor in 3 of 20 epochs."""
KEEP_FOR_BUDGET = 0.3
"""rho, which makes the whole run cost 37 %: .1 + .9 * .3 (METHODS section 7)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What all arms of a study have in common."""

    samples: int
    """Training images."""
    epochs: int
    """Passes over them, of an arm that sees all."""
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


def run_config(arm: Arm, *, data: DataConfig, scale: Scale, seed: int) -> RunConfig:
    """The run of one arm.

    Args:
        arm: how it trains.
        data: its images, and prototypes where it needs them.
        scale: model and length.
        seed: of weights, masks, draws and crops.
    """
    model = model_size(scale.size, **_model_fields(arm, scale))
    settings = model.pass_
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


def _model_fields(arm: Arm, scale: Scale) -> dict[str, Any]:
    """The arm's model fields; PASS counts epochs, so its schedule is stretched to the run."""
    fields = dict(arm.model)
    if "pass_" in fields:
        period = max(1, round(PASS_FULL_SHARE * scale.epochs))
        schedule = {
            "full_epochs": period,
            "period": period,
            "predictor_epochs": max(1, round(PASS_PREDICTOR_SHARE * period)),
            "predictor_depth": 2,
            "keep": KEEP_FOR_BUDGET,
        }
        fields["pass_"] = schedule | dict(fields["pass_"])
    return fields
