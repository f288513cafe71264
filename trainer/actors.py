"""The trainer under Ray Train v2: `train_on_ray` starts the ranks, each runs `trainer.train`.

Ray Train gives the process group, restarts after a failed rank and elastic worker counts. Checkpoints are the
trainer's own in the run directory, which all nodes share, so a restarted group continues from the newest;
`ray.train.report` is a barrier and is not called.

The driver and Ray Train's controller import this module and compute nothing: torch is imported by the functions that
the ranks run. That is also why the process group is not Ray's `TorchConfig`, which imports torch in the controller.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ray.train
from ray.exceptions import GetTimeoutError, RayError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from trainer.config import TrainConfig
from trainer.progress import TrainResult
from trainer.ranks.rendezvous import join_group, leave_group, open_store

if TYPE_CHECKING:
    from scoring import SelectionPort
    from trainer.loop import RunHooks
    from trainer.ranks.context import Context
    from trainer.record.recorder import Stream

log = logging.getLogger(__name__)

_LEAVE_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """One run under Ray Train; the functions are called in the workers, so that the objects they make never travel."""

    config: TrainConfig
    run_dir: str
    """Run directory on storage that every node sees."""
    make_stream: Callable[[Context], Stream]
    make_selection: Callable[[Context], SelectionPort] | None = None
    """Makes the selection that the rank reports scores to."""
    make_hooks: Callable[[Context], RunHooks] | None = None
    """Makes the rank's hooks; every rank must make the same ones."""


def train_on_ray(
    job: TrainJob,
    *,
    num_workers: int | tuple[int, int] = 1,
    use_gpu: bool = False,
    resources_per_worker: dict[str, float] | None = None,
    node_labels: dict[str, str] | None = None,
    max_failures: int = 0,
    name: str | None = None,
) -> TrainResult:
    """Run a job on Ray Train workers and return rank 0's result.

    Args:
        job: the run and the functions that make its parts.
        num_workers: ranks, or (least, most) for an elastic group.
        use_gpu: one GPU a rank, NCCL; otherwise gloo on the CPU.
        resources_per_worker: Ray resources of a rank, e.g. {"CPU": 0.5}.
        node_labels: labels of the nodes that ranks may run on; none means any node.
        max_failures: restarts after a failed rank or controller, from the newest checkpoint; -1 restarts without end.
        name: name of the run in Ray's dashboard.

    Raises:
        ray.train.TrainingFailedError: a rank or the controller failed more often than max_failures.
    """
    # A trainer fits once: each start of the controller needs a new one.
    make_trainer = partial(
        DataParallelTrainer,
        partial(_train_rank, job),  # as train_loop_config the controller would unpickle the job, and import its modules
        backend_config=RankGroup("nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # label_selector is v2's
            num_workers=num_workers,  # type: ignore[arg-type]  # a pair is elastic; the type seen here is v1's
            use_gpu=use_gpu,
            resources_per_worker=resources_per_worker,
            label_selector=node_labels or None,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(Path(job.run_dir).resolve() / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    returned: TrainResult = fit_with_restarts(make_trainer, max_failures=max_failures).return_value
    return returned


def fit_with_restarts(make_trainer: Callable[[], Any], *, max_failures: int) -> Any:
    """Train, and start Ray Train's controller again when a call that Ray lost ends it, as often as a rank may fail.

    Raises:
        ray.train.ControllerError: the controller failed more often, or by an error that is not Ray's.
    """
    # Ray Train restarts its controller itself only while the ranks have not started; it has ended them by now.
    for failures in itertools.count(1):
        try:
            return make_trainer().fit()
        except ray.train.ControllerError as error:
            if not isinstance(error.controller_failure, RayError) or 0 <= max_failures < failures:
                raise
            reason = str(error.controller_failure).partition("\n")[0]
            log.warning("Ray Train's controller failed; training continues from the newest checkpoint (%s)", reason)
    raise AssertionError("unreachable")


class _RankBackend(Backend):
    """Starts and ends the process group; Ray Train calls it in its controller."""

    share_cuda_visible_devices = True  # the GPU of a rank is number LOCAL_RANK

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        # Where Ray itself listens at the loopback only, its nodes' address is the loopback, and the ranks follow.
        host = worker_group.execute_single(0, ray.util.get_node_ip_address)
        worker_group.execute(_set_rank_variables)
        port = worker_group.execute_single(0, open_store, host)
        # `number`: the worker group keeps the keyword `rank` for itself.
        group = {"backend": backend_config.backend, "host": host, "port": port, "world_size": len(worker_group)}
        ranks = range(len(worker_group))
        ray.get([worker_group.execute_single_async(rank, join_group, number=rank, **group) for rank in ranks])

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        # A rank that hangs in a collective cannot leave; Ray Train kills it after this.
        try:
            ray.get(worker_group.execute_async(leave_group), timeout=_LEAVE_TIMEOUT_S)
        except GetTimeoutError:
            log.warning("the ranks did not leave their process group within %.0f s", _LEAVE_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class RankGroup(BackendConfig):
    """Configuration of the ranks' process group."""

    backend: str
    """`nccl` or `gloo`."""
    backend_cls: ClassVar[type[Backend]] = _RankBackend  # a property in Ray's class


def _set_rank_variables() -> None:
    """Set the environment variables from which libraries read a rank's place, as torchrun does."""
    place = ray.train.get_context()
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(place.get_world_rank()), str(place.get_world_size())
    os.environ["LOCAL_RANK"], os.environ["NODE_RANK"] = str(place.get_local_rank()), str(place.get_node_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(place.get_local_world_size())


def _train_rank(job: TrainJob) -> TrainResult:
    """Make the parts of a job in this rank's process and train."""
    import torch

    from trainer.loop import RunHooks, train
    from trainer.ranks.context import current_context

    context = current_context()
    if torch.cuda.is_available():
        torch.cuda.set_device(context.local_rank)  # NCCL's barrier takes the current device
    hooks = job.make_hooks(context) if job.make_hooks else RunHooks()
    return train(
        job.config,
        job.make_stream(context),
        run_dir=job.run_dir,
        selection=job.make_selection(context) if job.make_selection else None,
        context=context,
        hooks=replace(hooks, should_save=partial(_nodes_will_leave, set())),
    )


def _nodes_will_leave(known: set[str]) -> bool:
    """Return True once for each notice that nodes of the group will be removed, so that a checkpoint is written.

    Training goes on until a node is gone; Ray Train then restarts the group, on the remaining nodes when it is
    elastic, and does not count it as a failure. Every rank must call it equally often. The ids of nodes are added to
    `known`.
    """
    info = ray.train.get_preemption_info()
    new = set(info.preempted_node_ids) - known if info is not None else set()
    known |= new
    if new:
        log.warning("nodes %s will be removed; writing a checkpoint", ", ".join(sorted(new)))
    return bool(new)
