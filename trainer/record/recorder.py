"""The files of a run: metrics, checkpoints, the samples of a failed step, and how a run is restored from them.

The loop decides when; the recorder reads the numbers off the device, writes on rank 0, and restores. The loop waits
for device values here and nowhere else.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.errors import NonFiniteLossError
from trainer.methods.base import Method
from trainer.optim import learning_rate
from trainer.progress import TrainResult
from trainer.record.checkpoint import Checkpoints, checkpoint_paths, load_optimizer_tensors, optimizer_tensors
from trainer.record.metrics import Meter, MetricsLog
from trainer.record.profiling import image_flops, utilisation
from trainer.sharding import load_whole, place_like, unsharded, whole
from trainer.step import StepResult, TrainState

log = logging.getLogger(__name__)

OnStep = Callable[[int, dict[str, Any]], None]
OnEvaluate = Callable[[int, Method], dict[str, float] | None]
OnMilestone = Callable[[int, Method], None]


class Batch(Protocol):
    """The fields of a batch that the loop reads."""

    images: Tensor
    """uint8[L, 3, H, W], this rank's rows."""
    sample_ids: np.ndarray
    """int64[L]."""
    version: int
    """Version of the weight table that the samples were drawn from."""
    step: int
    """Optimizer step that the batch is for."""
    wait_s: float
    """Seconds that the loop waited for it."""


class Stream(Iterable[Any], Protocol):
    """Batches of one rank, one a step, that can be resumed; the loop checks the batches' fields."""

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue at a cursor."""


class Recorder:
    """The files of a run in progress; only rank 0 writes.

    The stream's cursor is saved and restored with the weights. `on_step` is called with (steps done, metrics) after
    every line of a step; None on all ranks but 0.
    """

    def __init__(self, state: TrainState, stream: Stream, directory: Path, on_step: OnStep | None) -> None:
        self.state, self.stream, self.directory, self.on_step = state, stream, directory, on_step
        self.checkpoints = Checkpoints(directory / "checkpoints", keep=state.config.keep_checkpoints)
        self.metrics = MetricsLog(directory / "metrics.jsonl")
        image_flops(state.config.method, state.config.model)  # counted and kept before the meter's time runs
        self.meter = Meter()
        self.last: dict[str, Any] = {}
        self._unread: list[tuple[int, np.ndarray, StepResult]] = []
        self._loss_sum: Tensor | None = None
        self._loss_steps = 0
        self._saved_step = -1
        self._substituted = 0

    def restore(self, *, resume: bool) -> None:
        """Continue from the newest checkpoint, if there is one. All ranks call this.

        Raises:
            ValueError: `resume` is False and there is one, or it is of another run.
            CheckpointError: there are checkpoints, none intact.
        """
        checkpoint = self.checkpoints.latest()
        state = self.state
        if checkpoint is None:
            start = 0
        else:
            if not resume:
                raise ValueError(
                    f"a new run needs an empty run directory; {self.directory} holds {checkpoint.path.name}. Resume, "
                    "or choose another."
                )
            _check_same_run(checkpoint.state["config"], state.config, checkpoint.path)
            load_whole(state.method, checkpoint.tensors["model"])
            load_optimizer_tensors(state.optimizers, checkpoint.tensors["optimizer"], place_like)
            for name, value in checkpoint.tensors.get("ema", {}).items():
                state.averages[name].copy_(place_like(value, state.averages[name]))
            start = state.step = self._saved_step = checkpoint.state["step"]
            self.stream.load_state_dict(checkpoint.state["stream"])
            log.info("resumed at step %d from %s", start, checkpoint.path)
        # Lines after the checkpoint are of steps that will be done again.
        if state.context.rank == 0:
            self.metrics.rewind(start + 1)
        state.context.barrier()

    def count(self, batch: Batch, result: StepResult) -> None:
        """Keep a step until its numbers are read."""
        self.meter.add(len(batch.sample_ids) * self.state.context.world_size, batch.wait_s)
        self._unread.append((self.state.step - 1, np.asarray(batch.sample_ids), result))
        self._loss_sum = result.loss if self._loss_sum is None else self._loss_sum + result.loss
        self._loss_steps += 1
        self._substituted += len(getattr(batch, "substituted", ()))  # not every stream substitutes samples
        if self.state.device.type == "cpu":  # reading costs nothing here; on a GPU it would wait for the step
            self.check_finite()

    def check_finite(self) -> None:
        """Read the gradient norms of the steps since the last check.

        Raises:
            NonFiniteLossError: one is not finite.
        """
        unread, self._unread = self._unread, []
        if not unread or all(torch.stack([result.grad_norm for _, _, result in unread]).isfinite().tolist()):
            return
        # A GPU has done further steps since; the first bad one is reported.
        step, ids, result = next(entry for entry in unread if not entry[2].grad_norm.isfinite())
        losses = result.per_sample_B.float().cpu().numpy()
        bad = [int(sample_id) for sample_id in ids[~np.isfinite(losses)]]
        path = self.directory / f"nonfinite-step-{step:08d}-rank-{self.state.context.rank}.json"
        values = {int(i): repr(float(v)) for i, v in zip(ids, losses, strict=True)}
        path.write_text(json.dumps({"step": step, "bad_sample_ids": bad, "losses": values}, indent=1), "ascii")
        raise NonFiniteLossError(step, bad, str(path))

    def log_step(self, batch: Batch, result: StepResult) -> None:
        """Read the numbers of the step off the device, check them, and write a line. All ranks call this.

        Raises:
            NonFiniteLossError: a gradient since the last check is not finite.
        """
        self.check_finite()
        # All in one tensor, so that the ranks exchange once and the device is waited for once.
        numbers = {"loss": result.loss, **result.parts}
        numbers["bad_samples"] = result.loss.new_tensor(self._substituted * self.state.context.world_size)
        self._substituted = 0
        mean = self.state.context.mean(torch.stack([value.detach().double() for value in numbers.values()]))
        values: dict[str, Any] = dict(zip(numbers, mean.tolist(), strict=True))
        values |= {"lr": learning_rate(self.state.config, self.state.step - 1), "grad_norm": float(result.grad_norm)}
        speed = self.meter.read()
        config, world_size = self.state.config, self.state.context.world_size
        values |= {"version": int(batch.version), **speed}
        values |= utilisation(speed["images_per_s"], config, self.state.device, world_size)
        self.last = {"step": self.state.step, **values}
        if self.state.context.rank == 0:
            self.metrics.write(self.state.step, values)
            if self.on_step:
                self.on_step(self.state.step, values)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Write that the run pauses, and that it continues; the time between counts for no speed."""
        started, writes = time.perf_counter(), self.state.context.rank == 0
        if writes:
            self.metrics.write(self.state.step, {"paused": True})
        try:
            yield
        finally:
            self.meter.skip(time.perf_counter() - started)
            if writes:
                self.metrics.write(self.state.step, {"paused": False})

    def evaluate(self, on_evaluate: OnEvaluate | OnMilestone) -> None:
        """Call the evaluation on rank 0 and write its values. All ranks call this: weights may be sharded."""
        method = unsharded(self.state.method, self.state.config, self.state.device)
        if self.state.context.rank == 0:
            method.eval()
            with torch.no_grad():
                values = on_evaluate(self.state.step, method)
            method.train()
            if values:
                self.metrics.write(self.state.step, values)
        self.state.context.barrier()

    def checkpoint(self) -> None:
        """Start writing a checkpoint; training continues once the tensors are copied. All ranks call this."""
        self.check_finite()
        state = self.state
        if state.step == self._saved_step:
            return
        self._saved_step = state.step
        # The mean loss since the last checkpoint tells the best one: a single step's is noise.
        loss = state.context.mean(self._loss_sum / self._loss_steps).item() if self._loss_sum is not None else None
        self._loss_sum, self._loss_steps = None, 0
        # Gathering sharded weights is collective: all ranks do it, and the others drop them.
        tensors = {"model": whole(state.method.state_dict()), "optimizer": whole(optimizer_tensors(state.optimizers))}
        if state.averages:
            tensors["ema"] = whole(state.averages)
        if state.context.rank == 0:
            self.checkpoints.save(
                state.step,
                tensors,
                {"config": dataclasses.asdict(state.config), "stream": self.stream.state_dict(), "metric": loss},
            )

    def finish(self, reason: Literal["finished", "stopped"]) -> TrainResult:
        """Write the last checkpoint, wait for it, and return how the run ended."""
        self.checkpoint()
        self.checkpoints.wait()  # on rank 0, before the others may read it
        self.state.context.barrier()
        path = checkpoint_paths(self.checkpoints.directory)[-1]
        log.info("%s at step %d; checkpoint %s", reason, self.state.step, path)
        return TrainResult(step=self.state.step, reason=reason, checkpoint=str(path), metrics=self.last)


# Fields that a resumed run may change: none of them shapes the numbers of a step.
_FREE_TO_CHANGE = frozenset(
    {
        "device",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "profile_steps",
        "compile_blocks",
        "accumulation_steps",
        "deterministic",
        "sharding",
    }
)


def _check_same_run(saved: dict[str, Any], config: TrainConfig, path: Path) -> None:
    """Raise ValueError when a checkpoint is of another run: another method, model or field that shapes the numbers."""
    current = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists, as in the saved one
    if saved.get("method") != current["method"]:
        raise ValueError(
            f"a checkpoint must be of the method that resumes it ({current['method']}); {path} is of "
            f"{saved.get('method')}. "
            f"Set method={saved.get('method')!r} or choose another run directory."
        )
    changed = sorted(name for name in current if name not in _FREE_TO_CHANGE and saved.get(name) != current[name])
    if changed:
        shown = (
            ", ".join(f"{name} (was {saved.get(name)}, now {current[name]})" for name in changed if name != "model")
            or "model"
        )
        raise ValueError(
            f"a resumed run must keep its config; {path} differs in {shown}. Restore them or choose another run "
            "directory."
        )
