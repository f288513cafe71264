"""What the API stands on: a run's selection and its loaders, behind actors, in this process, or as a run left them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.runs.config import load_config, prototype_distances, selection_config
from deploy.runs.rundir import RunDir, RunError
from loader import ShardIndex
from scoring import Control, ControlReply, Event, LogEntry, RunLog, Selection, SelectionConfig, read_entries

if TYPE_CHECKING:
    from loader import LoaderWorker


class SelectionPort(Protocol):
    """What is asked of a selection; `scoring.actors.SelectionClient` offers it."""

    def state(self) -> dict[str, Any]:
        """What is in force."""

    def view(self, name: str, **arguments: Any) -> dict[str, Any]:
        """A view of `scoring.views`."""

    def log(self, limit: int | None = None, **bounds: Any) -> list[LogEntry]:
        """Entries of the log."""

    def control(self, control: Control) -> ControlReply:
        """Change what is drawn."""

    def record(self, event: Event) -> None:
        """Write an event into the log."""


class FleetPort(Protocol):
    """What is asked of the loaders; `loader.fleet.client.FleetClient` offers it."""

    def status(self) -> dict[str, Any]:
        """Size, author, reason, and the loaders."""

    def scale(self, size: int, *, author: str, reason: str = "") -> Any:
        """Wish for another number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A run's selection and loaders."""

    selection: SelectionPort
    """What is drawn."""
    fleet: FleetPort | None
    """Who decodes; None where nobody does any more."""
    scalable: bool = True
    """Whether loaders can be added and taken away."""
    read_only: bool = False
    """Whether the run is over."""


class LocalSelection:
    """A selection in this process."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.state, self.log = selection.state, selection.log
        self.control, self.record, self.view = selection.control, selection.record, selection.view


class LocalFleet:
    """The loaders of a run in one process; there are as many as it began with."""

    def __init__(self, workers: Sequence[LoaderWorker]) -> None:
        self._workers = list(workers)

    def status(self) -> dict[str, Any]:
        """See `loader.fleet.supervisor.Fleet.status`."""
        place = {"state": "ready", "pid": os.getpid(), "node": socket.gethostname(), "restarts": 0, "reason": ""}
        loaders = [{"name": f"local-{n}", **place, **worker.stats()} for n, worker in enumerate(self._workers)]
        return {"size": len(loaders), "author": "run", "reason": "one process", "loaders": loaders}

    def scale(self, size: int, *, author: str, reason: str = "") -> Any:
        """Not here."""
        raise AssertionError("the API does not scale what is not scalable")


def live_parts(selection: SelectionPort, fleet: FleetPort) -> Parts:
    """Of a run under Ray."""
    return Parts(selection=selection, fleet=fleet)


def local_parts(selection: Selection, workers: Sequence[LoaderWorker]) -> Parts:
    """Of a run in this process."""
    return Parts(selection=LocalSelection(selection), fleet=LocalFleet(workers), scalable=False)


@contextmanager
def finished_parts(run: RunDir) -> Iterator[Parts]:
    """Of a run that is over: its selection recovered from the log, which is then let go of, so that it can be resumed.

    Raises:
        RunError: there is no log, or the run is alive.
    """
    with opened_log(run) as (log, config, distance):
        selection = Selection(distance, config, runlog=log)
    yield Parts(selection=_Finished(selection, run.log), fleet=None, scalable=False, read_only=True)


@contextmanager
def opened_log(run: RunDir) -> Iterator[tuple[RunLog, SelectionConfig, NDArray[np.float32] | None]]:
    """The log of a run that is not alive, its selection's configuration and its distances.

    Raises:
        RunError: there is no log, or the run is alive.
    """
    if run.is_alive:
        raise RunError(f"{run.path} is alive; its log has one writer. Ask again when it has stopped.")
    if not run.log.is_file():
        raise RunError(f"{run.path} has no log (run.sqlite is missing): the run has not started.")
    config = load_config(run.config)
    index = ShardIndex.load(config.data.index)
    part = selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)
    with closing(RunLog(run.log)) as log:
        yield log, part, prototype_distances(config)


class _Finished(LocalSelection):
    """A selection whose log is closed; what is in the log is read from the file."""

    def __init__(self, selection: Selection, path: Any) -> None:
        super().__init__(selection)
        self.log = lambda limit=None, **bounds: read_entries(path, limit=limit, **bounds)


def member(loader: Mapping[str, Any]) -> dict[str, Any]:
    """One loader as people see it."""
    hits, misses = loader.get("cache_hits", 0), loader.get("cache_misses", 0)
    names = ("name", "state", "node", "pid", "images", "images_per_s", "restarts", "reason")
    return {**{name: loader.get(name) for name in names}, "hit_rate": hits / (hits + misses) if hits + misses else None}
