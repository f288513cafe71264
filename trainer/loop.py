"""The training loop: `train()`, the only one.

1. Build the method, its optimizers and its wrapper over the ranks; continue from the newest checkpoint when the run
   directory has one.
2. For each batch of the stream: one step (`trainer.step`), scores collected for the selection and sent at the end of
   each window.
3. Every `log_every` steps read the numbers, check that they are finite, write a line of metrics.jsonl; every
   `checkpoint_every` steps a checkpoint.
4. SIGTERM, or the caller's `should_stop`: finish the step, write a checkpoint, return.

The stream is any iterable of batches with `images`, `sample_ids`, `version`, `step` and `wait_s` that has
`state_dict` and `load_state_dict`.
"""

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoint import Checkpoints, load_optimizer_tensors, optimizer_tensors
from trainer.config import TrainConfig, require, to_dict
from trainer.context import Context, current_context, pick_device, rank_batch
from trainer.errors import NonFiniteLossError
from trainer.methods import Method, build_method
from trainer.metrics import Meter, MetricsLog
from trainer.optim import build_optimizers, learning_rate
from trainer.pass_plan import selects_after
from trainer.sharding import load_whole, place_like, share_over_ranks, unsharded, whole
from trainer.step import StepResult, TrainState, train_step
from trainer.vit import transformer_blocks
from trainer.windows import ScoreReporter, ScoreSink

log = logging.getLogger(__name__)

OnStep = Callable[[int, dict[str, Any]], None]
OnEvaluate = Callable[[int, Method], dict[str, float] | None]


class Batch(Protocol):
    """What the loop reads of a batch."""

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


class Stream(Protocol):
    """What the loop iterates."""

    def __iter__(self) -> Iterator[Any]:
        """Yield one batch a step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue at a cursor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a run ended; plain values."""

    step: int
    """Optimizer steps done."""
    reason: Literal["finished", "stopped"]
    """All steps are done, or the run was asked to stop and can be resumed."""
    checkpoint: str
    """Directory of the last checkpoint."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The last line of metrics."""


def train(
    config: TrainConfig,
    stream: Stream,
    *,
    run_dir: str | Path,
    selection: ScoreSink | None = None,
    context: Context | None = None,
    on_step: OnStep | None = None,
    evaluate_every: int = 0,
    on_evaluate: OnEvaluate | None = None,
    should_stop: Callable[[], bool] | None = None,
    sweep: Callable[[TrainState], Any] | None = None,
    resume: bool = True,
) -> TrainResult:
    """Train to `config.total_steps`, or until told to stop.

    Args:
        config: the run.
        stream: batches of this rank, one a step.
        run_dir: directory for metrics.jsonl and checkpoints/; shared by the ranks.
        selection: takes each sample's loss at the end of every window; nothing waits for it.
        context: this process among the ranks; read from torch.distributed when not given.
        on_step: called on rank 0 with (steps done, metrics) after every logged step.
        evaluate_every: steps between calls of on_evaluate on rank 0; it is also called after the last step. 0 means
            never.
        on_evaluate: called with (steps done, method in eval mode); what it returns is written to metrics.jsonl.
        should_stop: asked after every step on a single process, at logged steps on several; True ends the run with a
            checkpoint.
        sweep: called on every rank after the epochs that a selection follows, e.g. a `trainer.sweep.Sweep`; needed
            with pass.
        resume: continue from the newest checkpoint of the run directory; without it an old checkpoint there is an
            error.

    Returns:
        How the run ended.

    Raises:
        ValueError: the config breaks a rule, or the run directory holds another run.
        CheckpointError: no checkpoint there is intact, or the disk refuses a new one.
        NonFiniteLossError: a loss is NaN or infinite; the samples are listed in the run directory.
    """
    context = context or current_context()
    selects = config.model.pass_.enabled
    require(sweep is not None or not selects, "pass needs a sweep over the data set; got none. Give train() a Sweep.")
    state = build_state(config, context)
    run = _Run(state, stream, Path(run_dir), on_step if context.rank == 0 else None)
    run.restore(resume=resume)
    kind = "loss" if selects else "bss"  # a selection ranks by the sweep's scores alone
    with (
        ScoreReporter(selection, producer=f"trainer-{context.rank}", kind=kind) as scores,
        _sigterm_flag() as terminated,
        run,
    ):
        if sweep and selects_after(state.progress, config.model.pass_):
            sweep(state)  # the run may have stopped while it selected; reports are merged once
        for batch in stream if state.step < config.total_steps else ():
            _check_batch(batch, state)
            result = train_step(state, batch.images)
            run.count(batch, result)
            scores.add(batch.sample_ids, result.per_sample_B)
            done, last = state.step, state.step == config.total_steps
            if done % config.window_steps == 0 or last:
                scores.flush(done)
            logged = done % config.log_every == 0 or last
            if logged:
                run.log_step(batch, result)
            if sweep and selects_after(state.progress, config.model.pass_):
                run.checkpoint()
                sweep(state)
            if on_evaluate and evaluate_every and (done % evaluate_every == 0 or last):
                run.evaluate(on_evaluate)
            stopping = terminated.is_set() or bool(should_stop and should_stop())
            if (logged or context.world_size == 1) and context.any(stopping, state.device) and not last:
                scores.flush(done)
                return run.finish("stopped")
            if last:
                break
            if config.checkpoint_every and done % config.checkpoint_every == 0:
                scores.flush(done)
                run.checkpoint()
        return run.finish("finished")


def build_state(config: TrainConfig, context: Context | None = None) -> TrainState:
    """Build the method with its seeded initial weights on the rank's device, its optimizers and its wrapper.

    Raises:
        ValueError: unknown method, no such device, or a batch that the ranks cannot share.
    """
    context = context or current_context()
    rank_batch(config, context.world_size)
    device = pick_device(config.device, context.local_rank)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.seed)
    method = build_method(config.method, config.model).to(device)
    if config.precision == "float64":
        method.double()
    if config.compile_blocks == "on" or (config.compile_blocks == "auto" and device.type == "cuda"):
        for block in transformer_blocks(method):
            block.compile()  # in place: names and the state dict stay
    method.pixel_mean, method.pixel_std = config.mean, config.std
    model = share_over_ranks(method, config, context, device)
    averages = (
        {n: p.detach().clone() for n, p in method.named_parameters() if p.requires_grad} if config.ema_decay else {}
    )
    optimizers = build_optimizers(method, config)
    return TrainState(
        config=config,
        context=context,
        device=device,
        method=method,
        model=model,
        optimizers=optimizers,
        averages=averages,
    )


class _Run:
    """The files of a run in progress: what the loop tells it to write, it writes on rank 0."""

    def __init__(self, state: TrainState, stream: Stream, directory: Path, on_step: OnStep | None) -> None:
        self.state, self.stream, self.directory, self.on_step = state, stream, directory, on_step
        self.checkpoints = Checkpoints(directory / "checkpoints", keep=state.config.keep_checkpoints)
        self.metrics = MetricsLog(directory / "metrics.jsonl")
        self.meter = Meter()
        self.last: dict[str, Any] = {}
        self._unread: list[tuple[int, np.ndarray, StepResult]] = []
        self._loss_sum: Tensor | None = None
        self._loss_steps = 0
        self._saved_step = -1

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.checkpoints.close()

    def restore(self, *, resume: bool) -> None:
        """Continue from the newest checkpoint, if there is one."""
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
        if state.context.rank == 0:
            self.metrics.rewind(start + 1)
        state.context.barrier()

    def count(self, batch: Batch, result: StepResult) -> None:
        """Remember a step until its numbers are read."""
        self.meter.add(len(batch.sample_ids) * self.state.context.world_size, batch.wait_s)
        self._unread.append((self.state.step - 1, np.asarray(batch.sample_ids), result))
        self._loss_sum = result.loss if self._loss_sum is None else self._loss_sum + result.loss
        self._loss_steps += 1
        if self.state.device.type == "cpu":
            self.check_finite()

    def check_finite(self) -> None:
        """Read the gradient norms of the steps since the last check.

        Raises:
            NonFiniteLossError: one is not finite.
        """
        unread, self._unread = self._unread, []
        if not unread or all(torch.stack([result.grad_norm for _, _, result in unread]).isfinite().tolist()):
            return
        step, ids, result = next(entry for entry in unread if not entry[2].grad_norm.isfinite())
        losses = result.per_sample_B.float().cpu().numpy()
        bad = [int(sample_id) for sample_id in ids[~np.isfinite(losses)]]
        path = self.directory / f"nonfinite-step-{step:08d}-rank-{self.state.context.rank}.json"
        values = {int(i): repr(float(v)) for i, v in zip(ids, losses, strict=True)}
        path.write_text(json.dumps({"step": step, "bad_sample_ids": bad, "losses": values}, indent=1), "ascii")
        raise NonFiniteLossError(step, bad, str(path))

    def log_step(self, batch: Batch, result: StepResult) -> None:
        """Read the numbers of the step, check them, write them."""
        self.check_finite()
        numbers = {"loss": result.loss, **result.parts}
        mean = self.state.context.mean(torch.stack([value.detach().double() for value in numbers.values()]))
        values: dict[str, Any] = dict(zip(numbers, mean.tolist(), strict=True))
        values |= {"lr": learning_rate(self.state.config, self.state.step - 1), "grad_norm": float(result.grad_norm)}
        values |= {"version": int(batch.version), **self.meter.read()}
        self.last = {"step": self.state.step, **values}
        if self.state.context.rank == 0:
            self.metrics.write(self.state.step, values)
            if self.on_step:
                self.on_step(self.state.step, values)

    def evaluate(self, on_evaluate: OnEvaluate) -> None:
        """Call the caller's evaluation on rank 0 and write what it returns."""
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
        """Start writing a checkpoint; the step goes on once the tensors are copied."""
        self.check_finite()
        state = self.state
        if state.step == self._saved_step:
            return
        self._saved_step = state.step
        loss = state.context.mean(self._loss_sum / self._loss_steps).item() if self._loss_sum is not None else None
        self._loss_sum, self._loss_steps = None, 0
        tensors = {"model": whole(state.method.state_dict()), "optimizer": whole(optimizer_tensors(state.optimizers))}
        if state.averages:
            tensors["ema"] = whole(state.averages)
        if state.context.rank == 0:
            self.checkpoints.save(
                state.step,
                tensors,
                {"config": to_dict(state.config), "stream": self.stream.state_dict(), "metric": loss},
            )

    def finish(self, reason: Literal["finished", "stopped"]) -> TrainResult:
        """Write the last checkpoint, wait for it, and say how the run ended."""
        self.checkpoint()
        self.checkpoints.wait()
        self.state.context.barrier()
        path = self.checkpoints.paths()[-1]
        log.info("%s at step %d; checkpoint %s", reason, self.state.step, path)
        return TrainResult(step=self.state.step, reason=reason, checkpoint=str(path), metrics=self.last)


def _check_batch(batch: Batch, state: TrainState) -> None:
    """Refuse a batch that is not the one this step needs."""
    wanted = state.config.global_batch // state.context.world_size
    size = state.config.model.image_size
    if batch.step != state.step:
        raise ValueError(
            f"a batch must be for the step that is next ({state.step}); the stream gave step {batch.step}. Restore "
            "its state_dict."
        )
    if tuple(batch.images.shape) != (wanted, 3, size, size):
        raise ValueError(
            f"a batch must be uint8[{wanted}, 3, {size}, {size}] (global_batch / world_size, image_size); got "
            f"{list(batch.images.shape)}. "
            "Give the stream the same global_batch, world_size and image size as the trainer."
        )


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
    """Refuse a checkpoint whose run is another one: its method, its model or anything else that shapes the numbers."""
    current = json.loads(json.dumps(to_dict(config)))
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
            f"a resumed run must keep its config; {path} differs in {shown}. Restore it or choose another run "
            "directory."
        )


@contextmanager
def _sigterm_flag() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event while the loop runs; only the main thread may, others use should_stop."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)
