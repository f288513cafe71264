"""The plan of a run: steps, windows, memory, images/s needed and available, PASS rounds.

Counts follow from the configuration; speeds are measured for a few seconds on this machine. A value that cannot be
known here (no index, a model too large for this machine) is None, with the reason among the notes.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from deploy.console import table
from deploy.runs.config import RunConfig
from loader import LoaderError, ShardIndex, StreamConfig
from trainer.progress import cost_epochs, progress_at, selection_epochs

SAMPLE_BYTES = 16
"""The selection's table, rounded up: distance, score and its report, times drawn, and subsets (`scoring.table`)."""
TRAINED_BYTES = 16
"""float32 weight, gradient and AdamW's two moments."""
Facts = dict[str, Any]


def make_plan(config: RunConfig, *, probe: bool = True) -> Facts:
    """Return the plan of a run, JSON-able: "steps", "memory", "speed", "pass", "notes".

    With `probe`, speeds are measured on this machine; that takes a few seconds.
    """
    notes: list[str] = []
    num_samples = _num_samples(config, notes)
    measured = _measure(config, num_samples, notes) if probe else {}
    trained = measured.get("parameters")
    steps = _steps(config, num_samples)
    speed = _speed(config, measured, notes)
    rounds = _rounds(config, num_samples, measured)
    seconds = steps["images"] / speed["expected_images_per_s"] if speed["expected_images_per_s"] else None
    # Training waits while a selection round scores the data set.
    if seconds is not None and rounds and rounds["seconds_each"]:
        seconds += rounds["rounds"] * rounds["seconds_each"]
    speed["hours"] = None if seconds is None else seconds / 3600
    return {
        "name": config.name,
        "steps": steps,
        "memory": _memory(config, num_samples, trained, measured.get("activation_bytes")),
        "speed": speed,
        "pass": rounds,
        "notes": notes,
    }


def plan_view(plan: Facts) -> RenderableType:
    """Return the plan as tables and notes."""
    parts: list[RenderableType] = []
    for title in ("steps", "memory", "speed", "pass"):
        if plan[title]:
            rows = [(name.replace("_", " "), _shown(name, value)) for name, value in plan[title].items()]
            parts.append(table(f"{plan['name']}: {title}", ("", ""), rows))
    return Group(*parts, *(f"note: {note}" for note in plan["notes"]))


def _num_samples(config: RunConfig, notes: list[str]) -> int | None:
    if not Path(config.data.index).is_file():
        notes.append(f"{config.data.index} is not on this machine: nothing that depends on the images is known.")
        return None
    try:
        return len(ShardIndex.load(config.data.index))
    except (LoaderError, OSError) as error:
        notes.append(f"the index cannot be read: {error}")
        return None


def _measure(config: RunConfig, num_samples: int | None, notes: list[str]) -> Facts:
    # torch is imported only now: a plan without a probe answers at once.
    from deploy.launch.measure import count_parameters, probe_loader, probe_trainer

    measured: Facts = {"parameters": count_parameters(config.train)}
    if num_samples:
        measured["loader"] = probe_loader(config, num_samples=num_samples)
    probe = probe_trainer(config.train, rank_batch=config.train.global_batch // config.trainers.workers)
    if probe is None:
        notes.append("the model is too large to try a step on this CPU: the trainers' images/s are not known here.")
        return measured
    where = f"on this machine ({probe.device}, {len(os.sched_getaffinity(0))} cores), for a few seconds"
    notes.append(f"speeds were measured {where}; `tempera bench` measures longer.")
    facts = {"trainer": probe.images_per_s, "scored": probe.scored_per_s, "activation_bytes": probe.activation_bytes}
    return measured | facts


def _steps(config: RunConfig, num_samples: int | None) -> Facts:
    train = config.train
    images = train.total_steps * train.global_batch
    return {
        "steps": train.total_steps,
        "windows": math.ceil(train.total_steps / train.window_steps),
        "global_batch": train.global_batch,
        "images": images,
        "samples": num_samples,
        "epochs": None if num_samples is None else images / num_samples,
        "checkpoints": train.total_steps // train.checkpoint_every,
    }


def _memory(config: RunConfig, num_samples: int | None, parameters: int | None, activation_bytes: int | None) -> Facts:
    train, fleet = config.train, config.fleet
    rank_batch = train.global_batch // config.trainers.workers
    micro_batch = math.ceil(rank_batch / train.accumulation_steps)
    image_bytes = 3 * config.data.transform.size**2
    stream = StreamConfig(
        seed=0, global_batch=train.global_batch, total_steps=train.total_steps, transform=config.data.transform
    )
    return {
        "parameters": parameters,
        "trained_state_bytes": None if parameters is None else parameters * TRAINED_BYTES,
        "activations_bytes_per_rank": None if activation_bytes is None else activation_bytes * micro_batch,
        "batches_ahead_bytes_per_rank": stream.prefetch_steps * rank_batch * image_bytes,
        "loader_caches_bytes": fleet.loaders * config.loader.cache_bytes,
        "selection_bytes": None if num_samples is None else num_samples * SAMPLE_BYTES,
    }


def _speed(config: RunConfig, measured: Facts, notes: list[str]) -> Facts:
    fleet, workers = config.fleet, config.trainers.workers
    one_loader, one_rank = measured.get("loader"), measured.get("trainer")
    available = None if one_loader is None else one_loader * fleet.loaders
    needed = None if one_rank is None else one_rank * workers
    known = [rate for rate in (available, needed) if rate is not None]
    if available is not None and needed is not None and available < needed:
        enough = math.ceil(needed / one_loader) if one_loader else 0
        notes.append(
            f"the loaders will be the bottleneck: {available:,.0f} images/s of {needed:,.0f}. "
            f"{enough} loaders would do (--set fleet.loaders={enough})."
        )
    # The speed of one loader was multiplied, which holds only where each has its cores.
    cores = len(os.sched_getaffinity(0))
    if fleet.loaders * config.loader.threads > cores and one_loader is not None:
        threads = config.loader.threads
        notes.append(f"{fleet.loaders} loaders of {threads} threads reach this speed on as many cores, not {cores}.")
    return {
        "needed_images_per_s": needed,
        "available_images_per_s": available,
        "expected_images_per_s": min(known) if len(known) == 2 else None,  # the slower side decides
        "loaders": fleet.loaders,
        "ranks": workers,
        "source": "probe" if known else "not measured",
    }


def _rounds(config: RunConfig, num_samples: int | None, measured: Facts) -> Facts | None:
    """Return the cost of the selection rounds; None for a run without PASS."""
    settings = config.train.model.pass_
    if not settings.enabled:
        return None
    num_epochs = progress_at(config.train, 0).num_epochs
    rounds = len(selection_epochs(num_epochs, settings))
    scored = measured.get("scored")
    return {
        "rounds": rounds,
        "images_each": num_samples,
        "seconds_each": num_samples / (scored * config.trainers.workers) if scored and num_samples else None,
        "epochs": num_epochs,
        "cost_in_full_epochs": cost_epochs(num_epochs, settings),
        "share_of_a_full_run": cost_epochs(num_epochs, settings) / num_epochs,
    }


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if "bytes" in name:
        return f"{value / 2**30:,.2f} GiB" if value >= 2**28 else f"{value / 2**20:,.1f} MiB"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
