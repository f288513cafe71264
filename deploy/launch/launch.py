"""Start a run and follow it to its end: `launch` under Ray, `launch_in_process` with the plain classes in this process.

The caller holds the lock of the run directory (`RunDir.held`). Both do the same steps; they differ in where the
selection and the loaders live.
1. Check the data, write config.json, start the trackers.
2. Start Ray (or join the cluster that RAY_ADDRESS names), the selection service and the loader fleet; publish how to
   reach them.
3. Clear old requests to stop or pause; serve the API.
4. Train. The selection recovers from its log and the trainer from its newest checkpoint: a resume is the same call.
5. Stop what was started, in reverse order.

This process computes nothing under Ray, so torch is imported only where training happens.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.launch.cluster import cluster, head_watched
from deploy.launch.rank import RankParts
from deploy.observe.periodic import periodic
from deploy.observe.prometheus import exported_to_ray
from deploy.observe.run import observed
from deploy.runs.config import RunConfig, load_config, prototype_distances, save_config, selection_config
from deploy.runs.rundir import Endpoint, RunDir, RunError
from loader import ShardIndex
from loader.fleet.supervisor import FleetEvent
from scoring import Event, RunLog, Selection, SelectionConfig, SelectionPort

if TYPE_CHECKING:
    from loader.actors import RayLoaders
    from loader.fleet.actors import FleetClient  # imports Ray, which reads the token when it is imported
    from trainer import TrainResult

    Beside = Callable[[SelectionPort, FleetClient], AbstractContextManager[object]]

SPARE_CPUS = 4.0
"""Logical CPUs of a local cluster beyond the run's own, so that loaders can be added while it trains."""
EVENTS_POLL_S = 0.5


def launch(config: RunConfig, run: RunDir, *, beside: Beside | None = None) -> TrainResult:
    """Run under Ray; continue when the directory already holds the same run.

    `beside` makes a context that is open while the run trains: the actors answer before it is entered, and until it is
    left.

    Raises:
        RunError: the directory holds another run.
    """
    from deploy.api.backend import RunBackend
    from deploy.api.server import serving

    fleet_config, trainers = config.fleet, config.trainers
    # Logical CPUs for the largest fleet: a local cluster cannot get more of them later.
    most_loaders = max(fleet_config.loaders, fleet_config.max_loaders)
    cpus = trainers.workers * trainers.cpus_per_worker + most_loaders * fleet_config.cpus_per_loader + SPARE_CPUS
    with ExitStack() as stack:
        selection_config = stack.enter_context(_prepared(config, run))
        endpoint = stack.enter_context(cluster(run.path, num_cpus=round(cpus)))
        resumes = f"`tempera resume {run.path}` goes on from the log and the newest checkpoint."
        stack.enter_context(head_watched(endpoint, then=resumes))
        # Actor names carry the run's name: several runs may share one cluster.
        endpoint = replace(endpoint, selection=f"selection-{config.name}", fleet=f"fleet-{config.name}")
        selection, fleet = stack.enter_context(_actors(config, run, endpoint, selection_config))
        stack.enter_context(run.published(endpoint))
        stack.enter_context(_requests(run))
        # The API comes last: a client that finds it finds actors that answer, and its requests are not cleared as old.
        backend = RunBackend(selection=selection, fleet=fleet)
        stack.enter_context(serving(config, run, backend, exporter=exported_to_ray))
        if beside:
            stack.enter_context(beside(selection, fleet))
        return _train_on_ray(config, run, endpoint)


def launch_in_process(config: RunConfig, run: RunDir, *, should_stop: Callable[[], bool] | None = None) -> TrainResult:
    """Do the same run in this process alone, without Ray.

    `should_stop` is called after each step; True ends the run with a checkpoint.

    Raises:
        RunError: the directory holds another run.
    """
    from deploy.api.backend import LocalFleet, RunBackend
    from deploy.api.server import serving
    from loader import LoaderWorker, LocalLoaders
    from trainer import Context, train

    with ExitStack() as stack:
        selection_config = stack.enter_context(_prepared(config, run))
        loader = config.fleet.specs(config.loader)[-1].config  # a mixed fleet's last spec is its CPU loaders
        workers = [LoaderWorker(config.data.index, loader) for _ in range(config.fleet.loaders)]
        runlog = stack.enter_context(closing(RunLog(run.log)))
        loaders = stack.enter_context(closing(LocalLoaders(workers)))
        selection = Selection(prototype_distances(config), selection_config, runlog=runlog)
        stack.enter_context(_requests(run))
        backend = RunBackend(selection=selection, fleet=LocalFleet(workers))
        stack.enter_context(serving(config, run, backend))
        context = Context()
        rank = RankParts(config=config, run=run, reach_selection=lambda: selection, reach_loaders=lambda: loaders)
        hooks = rank.hooks(context)
        return train(
            config.train,
            rank.stream(context),
            run_dir=run.path,
            selection=selection,
            context=context,
            hooks=replace(hooks, should_stop=lambda: run.stop_request.exists() or bool(should_stop and should_stop())),
        )


@contextmanager
def _prepared(config: RunConfig, run: RunDir) -> Iterator[SelectionConfig]:
    """Check the data against the index, write config.json, and follow the run with its trackers during the block.

    Nothing is written when a check fails.

    Raises:
        RunError: the directory holds another run.
        LoaderError: the index is missing, stale or not an index.
    """
    # Before anything is written: a stale index would train on other images than its log says.
    index = ShardIndex.load(config.data.index)
    index.verify(allow_hosts=config.loader.allow_hosts)
    if run.config.is_file():
        held = load_config(run.config)
        # As JSON: a config that was read back has lists where a new one has tuples.
        if json.dumps(asdict(held)) != json.dumps(asdict(config)):
            raise RunError(f"{run.path} holds another run ({held.name}). Resume that one, or take another --out.")
    else:
        run.path.mkdir(parents=True, exist_ok=True)
        save_config(config, run.config)
    with observed(config, run):
        yield selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)


@contextmanager
def _requests(run: RunDir) -> Iterator[None]:
    """Remove requests to stop or pause before the run and after it; the ranks read them in the run directory.

    Within the block SIGTERM to this process is such a request: the ranks write a checkpoint and stop.
    """
    for path in (run.stop_request, run.pause_request, run.consumed):
        path.unlink(missing_ok=True)
    in_main = threading.current_thread() is threading.main_thread()  # only the main thread may set a handler
    previous = signal.signal(signal.SIGTERM, lambda number, frame: run.stop_request.touch()) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)
        for path in (run.stop_request, run.pause_request):
            path.unlink(missing_ok=True)


@contextmanager
def _actors(
    config: RunConfig, run: RunDir, endpoint: Endpoint, selection_config: SelectionConfig
) -> Iterator[tuple[SelectionPort, FleetClient]]:
    """Start the run's selection service and loader fleet, and copy the fleet's events into the run log."""
    from loader.fleet.actors import start_fleet
    from scoring.actors import start_selection

    selection = start_selection(
        selection_config, runlog=run.log, prototypes=config.data.prototypes, name=endpoint.selection
    )
    fleet = start_fleet(
        Path(config.data.index).resolve(),
        config.fleet.specs(config.loader),
        size=config.fleet.loaders,
        name=endpoint.fleet,
        policy=config.fleet.policy,
        memory=run.path.resolve() / "fleet.json",  # a supervisor that is started again keeps the size asked for
    )
    try:
        with fleet_events_logged(fleet.events, selection.record):
            yield selection, fleet
    finally:
        fleet.close()
        selection.stop()


@contextmanager
def fleet_events_logged(
    events: Callable[[int], Sequence[FleetEvent]], record: Callable[[Event], None], *, every_s: float = EVENTS_POLL_S
) -> Iterator[None]:
    """Copy the fleet's events into the run log until the block ends, so that one log has the run's whole history.

    `events` returns the fleet's events after a sequence number. An event that `record` refuses is written at the next
    poll.
    """
    seen = 0

    def copy() -> None:
        nonlocal seen
        for event in events(seen):
            record(Event(kind=event.kind, author=event.author, message=event.message, value=event.value))
            seen = event.sequence  # only now: an event that was refused is read again

    trouble = "the fleet's events could not be copied into the run log yet"
    with periodic(copy, every_s=every_s, name="fleet-events", trouble=trouble):
        yield


def _train_on_ray(config: RunConfig, run: RunDir, endpoint: Endpoint) -> TrainResult:
    """Train on the ranks that Ray Train starts; each connects to the actors by their names."""
    from scoring.actors import SelectionClient
    from trainer.actors import TrainJob, train_on_ray

    # Absolute, because Ray Train gives ranks a working directory of their own.
    run, trainers = RunDir(run.path.resolve()), config.trainers
    reach_selection = partial(SelectionClient, name=endpoint.selection, namespace=endpoint.namespace)

    def reach_loaders() -> RayLoaders:
        # Called in the rank: the pool imports torch, and its ring of shared memory belongs to one process.
        from loader.actors import RayLoaders
        from loader.fleet.actors import connect_fleet

        return RayLoaders(connect_fleet(endpoint.fleet))

    rank = RankParts(config=config, run=run, reach_selection=reach_selection, reach_loaders=reach_loaders)
    job = TrainJob(
        config=config.train,
        run_dir=str(run.path),
        make_stream=rank.stream,
        make_selection=lambda context: reach_selection(),
        make_hooks=rank.hooks,
    )
    return train_on_ray(
        job,
        num_workers=trainers.range,
        use_gpu=trainers.use_gpu,
        resources_per_worker={"CPU": trainers.cpus_per_worker},
        node_labels=trainers.node_labels,
        max_failures=trainers.max_failures,
        name=config.name,
    )
