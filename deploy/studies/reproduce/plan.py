"""How long the arms of a study train: from a number of epochs, or from minutes and a measured step."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir, RunError, write_json
from deploy.studies.reproduce.arms import Scale, run_config
from deploy.studies.reproduce.claims import Arm

PROBE_STEPS = 24
TRAINING_SHARE = 0.8
"""Of the budget; the rest is for scoring and evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a study will do. Its scale is fixed when it begins; seeds and arms may be added."""

    claim: str
    """A name in CLAIMS."""
    seeds: int
    """Seeds 0 .. seeds - 1 for each arm."""
    arms: tuple[str, ...]
    """Names of the arms, in order."""
    scale: Scale
    """Model and length."""


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
    """The plans that the folders hold, or new ones; all claims train equally long.

    Args:
        out: folder of the study; a claim's plan is in its folder there.
        claims: name of the claim's folder -> what is trained.
        seeds: seeds of each arm.
        scale: everything but the epochs.
        data: training images for the probe.
        budget_minutes: time for everything; used where `epochs` is None and no folder holds a plan.
        epochs: passes over the data.
        workers: arms at a time.

    Raises:
        RunError: a folder holds a study of another scale, or the budget does not pay for one epoch.
    """
    paths = {name: out / name / "plan.json" for name in claims}
    found = {name: _load(path) for name, path in paths.items() if path.is_file()}
    if epochs is None and found:
        epochs = next(iter(found.values())).scale.epochs
    if epochs is None:
        together = {_settings(arm): arm for arms in claims.values() for arm in arms}
        epochs = _affordable(list(together.values()), seeds, scale, data, budget_minutes * workers)
    whole = replace(scale, epochs=epochs)
    plans = {}
    for name, arms in claims.items():
        plans[name] = Plan(claim=name, seeds=seeds, arms=tuple(arm.name for arm in arms), scale=whole)
        if name in found and found[name].scale != whole:
            raise RunError(
                f"{paths[name].parent} holds a study of another model or length ({paths[name]}). Take another --out, "
                "or remove it."
            )
    for name, plan in plans.items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        write_json(paths[name], asdict(plan))
    return plans


def _settings(arm: Arm) -> str:
    """What an arm trains, whatever it is called."""
    return repr(replace(arm, name="", paper={}))


def _affordable(arms: Sequence[Arm], seeds: int, scale: Scale, data: DataConfig, budget_minutes: float) -> int:
    seconds = _seconds_per_step(scale, data)
    epoch_s = seconds * scale.epoch_steps * sum(_cost(arm) for arm in arms) * seeds
    epochs = math.floor(TRAINING_SHARE * budget_minutes * 60 / epoch_s)
    if epochs < 1:
        raise RunError(
            f"--budget must pay for one epoch of every arm, about {epoch_s / 60 / TRAINING_SHARE:.0f} minutes here; "
            f"got {budget_minutes:g}. Give more, or fewer --samples or --seeds."
        )
    return epochs


def _cost(arm: Arm) -> float:
    """Time of the arm relative to a MAE that sees all; PASS sees .37 of it, and its rounds cost about as much as .1."""
    return 0.47 * arm.cost if "pass_" in arm.model else arm.cost


def _seconds_per_step(scale: Scale, data: DataConfig) -> float:
    """Of a MAE on uniform draws on this machine."""
    probe = run_config(Arm(name="probe"), data=data, scale=replace(scale, epochs=1), seed=0)
    train = replace(probe.train, total_steps=PROBE_STEPS, warmup_steps=0, log_every=1, checkpoint_every=0)
    with tempfile.TemporaryDirectory(prefix="tempera-probe-") as folder:
        run = RunDir(Path(folder) / "run")
        launch_in_process(replace(probe, train=train, evaluate_every=0), run)
        rates = [line["images_per_s"] for line in run.metric_lines() if "images_per_s" in line]
    return scale.global_batch / float(statistics.median(rates[PROBE_STEPS // 2 :]))


def _load(path: Path) -> Plan:
    value = json.loads(path.read_text())
    return Plan(claim=value["claim"], seeds=value["seeds"], arms=tuple(value["arms"]), scale=Scale(**value["scale"]))
