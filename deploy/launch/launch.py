"""Starts a run and sees it to its end.

The caller holds the run directory.
1. check the data, write config.json;
2. start Ray (or use the one named), the selection service and the loader fleet, and publish how to reach them;
3. train under Ray Train; the selection recovers from its log and the trainer from its newest checkpoint, so a
resume is the same call;
4. stop the actors.

`launch_in_process` is the same run without Ray: one process, the plain classes.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.api.parts import live_parts, local_parts
from deploy.api.server import serving
from deploy.launch.cluster import cluster, head_watched
from deploy.launch.fleet_events import events_copied
from deploy.launch.rank import RankParts
from deploy.observe import exported_to_ray
from deploy.observe.run import observed
from deploy.runs.config import RunConfig, load_config, save_config
from deploy.runs.curriculum import prototype_distances, selection_config
from deploy.runs.rundir import Endpoint, RunDir, RunError
from loader import LoaderPool, LoaderWorker, LocalLoaders, ShardIndex
from scoring import RunLog, Selection, SelectionConfig
from trainer import SingleProcess, TrainResult, train

if TYPE_CHECKING:
    from loader.fleet.client import FleetClient
    from scoring.actors import SelectionClient

    Beside = Callable[[SelectionClient, FleetClient], AbstractContextManager[object]]

log = logging.getLogger(__name__)

SPARE_CPUS = 4.0
"""Logical CPUs of a local cluster beyond the run's own, so that loaders can be added while it trains."""


def launch(config: RunConfig, run: RunDir, *, beside: Beside | None = None) -> TrainResult:
    """Run under Ray; continue when the directory holds the same run already.

    Args:
        config: the run.
        run: its directory.
        beside: called with the clients of the selection and the fleet once the actors answer; the returned context is
            left when training is over, while the actors still answer.

    Raises:
        RunError: the directory holds another run.
    """
    selection_part = _prepare(config, run)
    with ExitStack() as stack:
        stack.enter_context(observed(config, run))
        fleet, trainers = config.fleet, config.trainers
        most_loaders = max(fleet.loaders, fleet.max_loaders)
        cpus = trainers.workers * trainers.cpus_per_worker + most_loaders * fleet.cpus_per_loader + SPARE_CPUS
        endpoint = stack.enter_context(cluster(run.path, num_cpus=round(cpus)))
        resumes = f"`tempera resume {run.path}` goes on from the log and the newest checkpoint."
        stack.enter_context(head_watched(endpoint, then=resumes))
        endpoint = replace(endpoint, selection=f"selection-{config.name}", fleet=f"fleet-{config.name}")
        selection, loaders = stack.enter_context(_actors(config, run, endpoint, selection_part))
        stack.enter_context(run.published(endpoint))
        stack.enter_context(_requests(run))
        stack.enter_context(serving(config, run, live_parts(selection, loaders), exporter=exported_to_ray))
        if beside:
            stack.enter_context(beside(selection, loaders))
        return _train_on_ray(config, run, endpoint)


def launch_in_process(config: RunConfig, run: RunDir, *, should_stop: Callable[[], bool] | None = None) -> TrainResult:
    """Run in this process alone, with the plain classes and without Ray.

    Args:
        config: the run.
        run: its directory.
        should_stop: called after each step; True ends the run with a checkpoint, as a stop request does.

    Raises:
        RunError: the directory holds another run.
    """
    selection_part = _prepare(config, run)
    loader = config.fleet.specs(config.loader)[-1].config  # the last spec is the one without a number
    workers = [LoaderWorker(config.data.index, loader) for _ in range(config.fleet.loaders)]
    with ExitStack() as stack:
        stack.enter_context(observed(config, run))
        runlog = stack.enter_context(closing(RunLog(run.log)))
        loaders = stack.enter_context(closing(LocalLoaders(workers)))
        selection = Selection(prototype_distances(config), selection_part, runlog=runlog)
        stack.enter_context(_requests(run))
        stack.enter_context(serving(config, run, local_parts(selection, workers)))
        context = SingleProcess()
        parts = RankParts(config=config, run=run, reach_selection=lambda: selection, reach_loaders=lambda: loaders)
        hooks = parts.hooks(context)
        if should_stop:
            hooks = replace(hooks, should_stop=lambda: run.stop_request.exists() or should_stop())
        return train(
            config.train,
            parts.stream(context),
            run_dir=run.path,
            selection=selection,
            context=context,
            hooks=hooks,
        )


def _prepare(config: RunConfig, run: RunDir) -> SelectionConfig:
    """Check the data against the index and write config.json; nothing is written when something does not fit.

    Raises:
        RunError: the directory holds another run.
        LoaderError: the index is missing, stale or not an index.
    """
    index = ShardIndex.load(config.data.index)
    index.verify(allow_hosts=config.loader.allow_hosts)
    if run.config.is_file():
        held = load_config(run.config)
        if json.dumps(asdict(held)) != json.dumps(asdict(config)):
            raise RunError(f"{run.path} holds another run ({held.name}). Resume that one, or take another --out.")
    else:
        run.path.mkdir(parents=True, exist_ok=True)
        save_config(config, run.config)
    return selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)


@contextmanager
def _actors(
    config: RunConfig, run: RunDir, endpoint: Endpoint, selection_part: SelectionConfig
) -> Iterator[tuple[SelectionClient, FleetClient]]:
    """Start the run's selection service and loader fleet; the fleet's events are copied into the run log."""
    from loader.fleet.actors import start_fleet
    from scoring.actors import start_selection

    selection = start_selection(
        selection_part,
        runlog=run.log,
        prototypes=config.data.prototypes,
        name=endpoint.selection,
    )
    fleet = start_fleet(
        Path(config.data.index).resolve(),
        config.fleet.specs(config.loader),
        size=config.fleet.loaders,
        name=endpoint.fleet,
        policy=config.fleet.policy,
        memory=run.path.resolve() / "fleet.json",
    )
    try:
        with events_copied(fleet.events, selection.record):
            yield selection, fleet
    finally:
        fleet.close()
        selection.stop()


def _train_on_ray(config: RunConfig, run: RunDir, endpoint: Endpoint) -> TrainResult:
    from trainer.actors import TrainJob, train_on_ray

    run = RunDir(run.path.resolve())  # Ray Train gives ranks a working directory of their own
    parts = RankParts(
        config=config,
        run=run,
        reach_selection=partial(_reach_selection, endpoint),
        reach_loaders=partial(_reach_loaders, endpoint),
    )
    job = TrainJob(
        config=config.train,
        run_dir=str(run.path),
        make_stream=parts.stream,
        make_selection=parts.selection,
        make_hooks=parts.hooks,
    )
    return train_on_ray(
        job,
        num_workers=config.trainers.range,
        use_gpu=config.trainers.use_gpu,
        resources_per_worker={"CPU": config.trainers.cpus_per_worker},
        node_labels=config.trainers.node_labels,
        max_failures=config.trainers.max_failures,
        name=config.name,
    )


@contextmanager
def _requests(run: RunDir) -> Iterator[None]:
    """What is asked of the ranks, which share the run directory, begins and ends with the run.

    SIGTERM to the driver asks them to checkpoint and return.
    """
    for path in (run.stop_request, run.pause_request, run.consumed):
        path.unlink(missing_ok=True)
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda number, frame: run.stop_request.touch()) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)
        for path in (run.stop_request, run.pause_request):
            path.unlink(missing_ok=True)


def _reach_selection(endpoint: Endpoint) -> SelectionClient:
    from scoring.actors import SelectionClient

    return SelectionClient(name=endpoint.selection, namespace=endpoint.namespace)


def _reach_loaders(endpoint: Endpoint) -> LoaderPool:
    from loader.actors import RayLoaders
    from loader.fleet.actors import connect_fleet

    return RayLoaders(connect_fleet(endpoint.fleet))
