"""The only training loop: `train()`.

1. Build the method, its optimizers and its wrapper over the ranks; continue from the newest checkpoint when the run
   directory has one.
2. For each batch of the stream: one step (`trainer.step`), scores collected for the selection and sent at the end of
   each window.
3. Every `log_every` steps read the numbers, check that they are finite, write a line of metrics.jsonl; every
   `checkpoint_every` steps a checkpoint.
4. On SIGTERM, or when the hook `should_stop` returns True: write a checkpoint and return. While the hook `should_pause`
   returns True: wait between two steps. Several ranks agree on both every ten steps.

The stream has `state_dict` and `load_state_dict`, and iterates batches with `images`, `sample_ids`, `version`, `step`
and `wait_s`.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scoring import SelectionPort
from trainer.config import TrainConfig, require
from trainer.methods import build_method
from trainer.models.vit import transformer_blocks, use_plain_attention
from trainer.optim import build_optimizers
from trainer.progress import TrainResult, selects_after
from trainer.ranks.context import Context, current_context, pick_device, rank_batch
from trainer.ranks.stop_pause import pause_or_stop
from trainer.record.profiling import trace
from trainer.record.recorder import Batch, OnEvaluate, OnMilestone, OnStep, Recorder, Stream
from trainer.sharding import share_over_ranks
from trainer.step import TrainState, train_step
from trainer.windows import ScoreReporter

_STOP_STEPS = 10  # steps between the ranks' agreements on stopping: a few seconds of a preemption notice's thirty


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHooks:
    """The hooks of a caller, each optional. Every rank must have the same ones, because some are collective."""

    on_step: OnStep | None = None
    """Called on rank 0 with (steps done, metrics) after every logged step."""
    evaluate_every: int = 0
    """Steps between calls of `on_evaluate`, which is also called after the last step; 0 means never."""
    on_evaluate: OnEvaluate | None = None
    """Called on rank 0 with (steps done, method in eval mode); the values it returns are written to metrics.jsonl."""
    on_milestone: OnMilestone | None = None
    """Called like `on_evaluate` at the start, in the middle and at the end of the run."""
    should_stop: Callable[[], bool] | None = None
    """Called after every step on a single process, every ten steps on several; True ends the run with a checkpoint."""
    should_pause: Callable[[], bool] | None = None
    """Called as often as `should_stop`; the run pauses while it returns True on any rank. A pause changes no result."""
    should_save: Callable[[], bool] | None = None
    """Called every ten steps on every rank; True on any rank writes a checkpoint, as when a node will be removed."""
    sweep: Callable[[TrainState], Any] | None = None
    """Called on every rank after each epoch that ends with a selection, as a `trainer.sweep.Sweep`; needed by PASS."""


def train(
    config: TrainConfig,
    stream: Stream,
    *,
    run_dir: str | Path,
    selection: SelectionPort | None = None,
    context: Context | None = None,
    hooks: RunHooks = RunHooks(),
    resume: bool = True,
) -> TrainResult:
    """Train to `config.total_steps`, or until a hook or SIGTERM stops the run.

    Args:
        config: the run.
        stream: batches of this rank, one a step.
        run_dir: directory for metrics.jsonl and checkpoints/; shared by the ranks.
        selection: receives each sample's loss at the end of every window; training does not wait for it.
        context: this process among the ranks; read from torch.distributed when not given.
        hooks: functions of the caller that the loop calls.
        resume: continue from the newest checkpoint of the run directory; without it an old one there is an error.

    Raises:
        ValueError: the config breaks a rule, or the run directory holds another run.
        CheckpointError: no checkpoint there is intact, or the disk refuses a new one.
        NonFiniteLossError: a loss is NaN or infinite; the samples are listed in the run directory.
    """
    context = context or current_context()
    selects, sweep = config.model.pass_.enabled, hooks.sweep
    require(sweep is not None or not selects, "pass needs a sweep over the data set; got none. Give train() a Sweep.")
    state = build_state(config, context)
    run = Recorder(state, stream, Path(run_dir), hooks.on_step if context.rank == 0 else None)
    run.restore(resume=resume)
    kind = "loss" if selects else "bss"  # with PASS, only the sweep may report the scores that rank samples
    with (
        ScoreReporter(selection, producer=f"trainer-{context.rank}", kind=kind) as scores,
        _sigterm_flag() as terminated,
        closing(run.checkpoints),
        trace(config.profile_steps, run.directory / f"trace-rank-{context.rank}.json") as profiler,
    ):
        stops = partial(
            pause_or_stop,
            context,
            state.device,
            stop=lambda: terminated.is_set() or bool(hooks.should_stop and hooks.should_stop()),
            pause=hooks.should_pause,
            paused=run.paused,
        )
        # The run may have stopped during the sweep that follows this checkpoint; a repeated report is merged once.
        if sweep and selects_after(state.progress, config.model.pass_):
            sweep(state)
        if hooks.on_milestone and state.step == 0:
            run.evaluate(hooks.on_milestone)
        for batch in stream if state.step < config.total_steps else ():
            _check_batch(batch, state)
            # An audit hook may record which batches this rank consumed; without one the event costs some 50 ns.
            sys.audit("tempera.batch", state, str(run_dir), context.rank, batch)
            result = train_step(state, batch.images)  # queues the work; a GPU computes it while the loop goes on
            run.count(batch, result)
            if profiler:
                profiler.step()
            scores.add(batch.sample_ids, result.per_sample_B)
            done, last = state.step, state.step == config.total_steps
            if done % config.window_steps == 0 or last:
                scores.flush(done)
            if done % config.log_every == 0 or last:
                run.log_step(batch, result)
            if sweep and selects_after(state.progress, config.model.pass_):
                run.checkpoint()  # a run that stops during the sweep repeats it when resumed
                sweep(state)
            if hooks.on_evaluate and hooks.evaluate_every and (done % hooks.evaluate_every == 0 or last):
                run.evaluate(hooks.on_evaluate)
            if hooks.on_milestone and (last or done == config.total_steps // 2):
                run.evaluate(hooks.on_milestone)
            # On several ranks the agreement is an exchange that waits for the device; on one it costs nothing.
            asks = context.world_size == 1 or done % _STOP_STEPS == 0
            if asks and not last and stops():
                scores.flush(done)
                return run.finish("stopped")
            if last:
                break
            # Every rank asks at the same step: `any` is collective, and so is writing a sharded checkpoint.
            save = hooks.should_save and done % _STOP_STEPS == 0 and context.any(hooks.should_save(), state.device)
            if save or (config.checkpoint_every and done % config.checkpoint_every == 0):
                scores.flush(done)
                run.checkpoint()
        require(
            state.step == config.total_steps,
            f"the stream must give total_steps ({config.total_steps}) batches; it ended at step {state.step}. Give "
            "both the same total.",
        )
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
    # The backward pass of torch's fused attention in bf16 on a CPU takes ten times as long as in float32.
    if config.precision == "bf16" and device.type == "cpu":
        use_plain_attention(method)
    if config.compile_blocks == "on" or (config.compile_blocks == "auto" and device.type == "cuda"):
        for block in transformer_blocks(method):
            block.compile(dynamic=False)  # in place: names and the state dict stay; one kernel for each shape
    method.pixel_mean, method.pixel_std = config.mean, config.std
    model = share_over_ranks(method, config, context, device)
    # After sharding, which replaces the parameters: each rank averages and optimizes its own shards.
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


def _check_batch(batch: Batch, state: TrainState) -> None:
    """Raise ValueError when the batch is not the one that this step needs."""
    wanted = state.config.global_batch // state.context.world_size
    size = state.config.model.image_size
    if batch.step != state.step:
        raise ValueError(
            f"a batch must be for the next step ({state.step}); the stream gave step {batch.step}. Restore "
            "its state_dict."
        )
    if tuple(batch.images.shape) != (wanted, 3, size, size):
        raise ValueError(
            f"a batch must be uint8[{wanted}, 3, {size}, {size}] (global_batch / world_size, image_size); got "
            f"{list(batch.images.shape)}. "
            "Give the stream the same global_batch, world_size and image size as the trainer."
        )


@contextmanager
def _sigterm_flag() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event while the loop runs; Python allows that in the main thread only."""
    event = threading.Event()
    # A run in another thread is stopped by its hook alone.
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)
