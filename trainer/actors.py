"""The trainer under Ray Train v2: `train_on_ray` starts the ranks, each runs `trainer.train`.

Ray Train gives the process group, restarts after a failed rank and elastic worker counts. Checkpoints are the
trainer's own in the run directory, which all nodes share, so a restarted group continues from the newest;
`ray.train.report` is a barrier and is not called. Where Ray itself listens at the loopback only, the ranks do too.
"""

import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

from trainer.config import TrainConfig
from trainer.loop import RunHooks, train
from trainer.progress import TrainResult
from trainer.ranks.context import Context, Distributed, SingleProcess
from trainer.ranks.rendezvous import LOOPBACK, join_group, open_store
from trainer.record.recorder import Stream
from trainer.windows import ScoreSink

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """One run under Ray Train; the functions are called in the workers, so that what they make never travels."""

    config: TrainConfig
    """The run."""
    run_dir: str
    """Run directory on storage that every node sees."""
    make_stream: Callable[[Context], Stream]
    """Makes the rank's stream of batches."""
    make_selection: Callable[[Context], ScoreSink | None] | None = None
    """Makes what the rank reports scores to."""
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
        max_failures: restarts after a failed rank or controller; each continues from the newest checkpoint. -1
            restarts without end.
        name: name of the run in Ray's dashboard.

    Raises:
        ray.train.TrainingFailedError: a rank or the controller failed more often than max_failures.
    """
    make_trainer = partial(
        TorchTrainer,
        _train_rank,  # type: ignore[arg-type]  # ray's annotations leave out the return value
        train_loop_config={"job": job},
        torch_config=GuardedTorch(),
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
    returned: TrainResult = _fitted(make_trainer, max_failures=max_failures).return_value
    return returned


def _fitted(make_trainer: Callable[[], Any], *, max_failures: int) -> Any:
    """Train; what fails of Ray Train's controller by a call that Ray lost is started again, as often as a rank is.

    Ray Train has ended its ranks by then. It starts a controller again itself only where its ranks could not start.
    """
    for failures in itertools.count(1):
        try:
            return make_trainer().fit()
        except ray.train.ControllerError as error:
            if not isinstance(error.controller_failure, RayError) or 0 <= max_failures < failures:
                raise
            reason = str(error.controller_failure).partition("\n")[0]
            log.warning("Ray Train's controller failed; it goes on from the newest checkpoint (%s)", reason)
    raise AssertionError("unreachable")


class GuardedBackend(_TorchBackend):
    """Ray's way to a process group, but for one machine: its ranks meet at the loopback."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Start the process group of new workers."""
        if worker_group.execute_single(0, ray.util.get_node_ip_address) != LOOPBACK:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_name_place)
        port = worker_group.execute_single(0, open_store)
        group = {"backend": backend_config.backend, "port": port, "world_size": len(worker_group)}
        ranks = range(len(worker_group))
        ray.get([worker_group.execute_single_async(rank, join_group, number=rank, **group) for rank in ranks])


class GuardedTorch(TorchConfig):
    """Ray's settings of torch, with our backend."""

    @property
    def backend_cls(self) -> type[GuardedBackend]:
        """What starts the process group."""
        return GuardedBackend


def _name_place() -> None:
    """Set the variables by which libraries know a rank's place, as torchrun does."""
    place = ray.train.get_context()
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(place.get_world_rank()), str(place.get_world_size())
    os.environ["LOCAL_RANK"], os.environ["NODE_RANK"] = str(place.get_local_rank()), str(place.get_node_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(place.get_local_world_size())


def _train_rank(arguments: dict[str, Any]) -> TrainResult:
    """Run one rank."""
    job: TrainJob = arguments["job"]
    context = _ray_context()
    selection = job.make_selection(context) if job.make_selection else None
    hooks = job.make_hooks(context) if job.make_hooks else RunHooks()
    return train(
        job.config,
        job.make_stream(context),
        run_dir=job.run_dir,
        selection=selection,
        context=context,
        hooks=replace(hooks, should_save=PreemptionNotice()),
    )


class PreemptionNotice:
    """Says once for each notice that nodes of the group will be taken away, so that a checkpoint is written.

    Training goes on until a node is gone; Ray Train then restarts the group, on the nodes that are left when it is
    elastic, and does not count it as a failure. Every rank must ask equally often.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self) -> bool:
        """Tell whether there is a notice that was not told before."""
        info = ray.train.get_preemption_info()
        news = set(info.preempted_node_ids) - self._known if info is not None else set()
        self._known |= news
        if news:
            log.warning("nodes %s will be taken away; writing a checkpoint", ", ".join(sorted(news)))
        return bool(news)


def _ray_context() -> Context:
    """Return this worker's place: the process group that Ray Train has made, with Ray's number of the GPU."""
    return Distributed() if dist.is_initialized() else SingleProcess()
