"""The training loop of the evaluations: linear probes, fine-tuning, detection and segmentation.

The caller gives batches, losses and rates as functions of the step. The loop makes the next batch in a thread, steps,
evaluates, writes a checkpoint at each evaluation, and continues from it. A batch must be a pure function of the step.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import Precision, require
from trainer.evaluate.data import ahead
from trainer.models.weights import move_average
from trainer.optim import gradient_norm, set_learning_rate
from trainer.precision import autocast
from trainer.record.checkpoint import Checkpoints, load_optimizer_tensors, optimizer_tensors

Progress = Callable[[int, int], None]
Figures = dict[str, Any]

_CHECK_STEPS = 50  # reading the loss waits for the device, so that it is checked once in this many steps


@dataclass(kw_only=True, slots=True)
class Fit:
    """One training for an evaluation."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    """Its groups have `params`, `names` and `lr_scale`."""
    batch: Callable[[int], Any]
    """The batch of a step; called in a thread, one step ahead."""
    loss: Callable[[Any], Tensor]
    """The scalar loss of a batch."""
    rate: Callable[[int], float]
    """Learning rate of a step."""
    total_steps: int
    clip_norm: float = 0.0
    """Largest gradient norm; 0 means no clipping."""
    average: nn.Module | None = None
    """Moving average of the model's weights, evaluated instead of it."""
    average_decay: float = 0.0
    precision: Precision = "auto"
    settings: Figures = field(default_factory=dict)
    """Facts that must be the same when a fit is continued."""


def fit(
    job: Fit,
    *,
    directory: str | Path | None = None,
    evaluate: Callable[[int], Figures],
    evaluate_every: int,
    progress: Progress | None = None,
) -> list[Figures]:
    """Train to the end and return the evaluations in order, each with its step.

    `evaluate` is called in eval mode with the steps done every `evaluate_every` steps (0: never) and at the end; then a
    checkpoint is written to `directory`, if given, and one found there is continued. `progress` is called with
    (steps done, all steps).

    Raises:
        ValueError: a loss is not finite, or the directory holds a fit with other settings.
    """
    require(job.total_steps >= 1, f"total_steps must be 1 or more; got {job.total_steps}.")
    checkpoints = None if directory is None else Checkpoints(directory, keep=1)
    # However the fit ends, the checkpoint being written is finished, and the model can be used.
    try:
        start, history = _restore(job, checkpoints)
        steps = range(start, job.total_steps)
        job.model.train()
        for step, batch in zip(steps, ahead(job.batch, steps), strict=True):
            loss = _train_step(job, step, batch)
            done = step + 1
            due = done == job.total_steps or bool(evaluate_every and done % evaluate_every == 0)
            if due or done % _CHECK_STEPS == 0:
                require(
                    bool(loss.isfinite()), f"the loss must stay finite; step {step} gave {loss.item()}. Lower the rate."
                )
            if due:
                job.model.eval()
                with torch.no_grad():
                    history.append({"step": done, "loss": loss.item(), **evaluate(done)})
                job.model.train()
            if due and checkpoints:
                tensors = {"model": job.model.state_dict(), "optimizer": optimizer_tensors({"fit": job.optimizer})}
                tensors |= {"average": job.average.state_dict()} if job.average is not None else {}
                checkpoints.save(done, tensors, {"history": history, "settings": job.settings})
            if progress:
                progress(done, job.total_steps)
        return history
    finally:
        job.model.eval()
        if checkpoints:
            checkpoints.close()


def _train_step(job: Fit, step: int, batch: Any) -> Tensor:
    """Do one optimizer step and return its loss, still on the device."""
    torch.manual_seed(step)  # dropout and stochastic depth are a function of the step, so that a fit can be continued
    with autocast(next(job.model.parameters()).device, job.precision):
        loss = job.loss(batch)
    torch.autograd.backward(loss)
    parameters = [parameter for group in job.optimizer.param_groups for parameter in group["params"]]
    if job.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, job.clip_norm, gradient_norm(parameters))
    set_learning_rate(job.optimizer, job.rate(step))
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    if job.average is not None:
        move_average(job.average, job.model, job.average_decay)
    return loss


def named_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    free: Callable[[str, nn.Parameter], bool] = lambda name, parameter: parameter.ndim <= 1,
    layers: Mapping[str, int] | None = None,
    layer_decay: float = 1.0,
    top: int = 0,
) -> list[dict[str, Any]]:
    """Return optimizer groups by (rate scale, decay), with names; the scale is layer_decay ** (top - layer).

    Parameters that need no gradient are left out; `free` tells which have no weight decay. `layers` has the layer by
    name, as BEiT decays rates (arXiv:2106.08254); the others, and layer `top`, have the full rate.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (top - (layers or {}).get(name, top))
        key = scale, 0.0 if free(name, parameter) else weight_decay
        group = groups.setdefault(key, {"params": [], "names": [], "lr_scale": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def classifier_figures(curve: list[Figures], epochs: int) -> Figures:
    """Return acc1 and acc5 of the last evaluation, best_acc1, the epochs and the curve."""
    last, best = curve[-1], max(line["acc1"] for line in curve)
    return {"acc1": last["acc1"], "acc5": last["acc5"], "best_acc1": best, "epochs": epochs, "curve": curve}


def _restore(job: Fit, checkpoints: Checkpoints | None) -> tuple[int, list[Figures]]:
    """Continue from the newest checkpoint, and return its step and the evaluations so far.

    Raises:
        ValueError: the checkpoint is of other settings.
    """
    found = checkpoints.latest() if checkpoints else None
    if found is None:
        return 0, []
    saved = found.state["settings"]
    require(
        saved == job.settings,
        f"an evaluation is continued with its own settings; {found.path} has {saved}, now {job.settings}. Choose "
        "another directory.",
    )
    job.model.load_state_dict(found.tensors["model"])
    if job.average is not None:
        job.average.load_state_dict(found.tensors["average"])
    load_optimizer_tensors(
        {"fit": job.optimizer}, found.tensors["optimizer"], lambda value, like: value.to(like.device)
    )
    return int(found.state["step"]), list(found.state["history"])
