"""RunBackend: the selection and the loaders behind the API, wherever they are.

A live run under Ray gives the clients of its actors, a run in one process its own objects (`LocalFleet`), and a run
that is over a selection recovered from its log (`finished_backend`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.api.log_index import finite
from deploy.runs.config import load_config, prototype_distances, selection_config
from deploy.runs.rundir import RunDir, RunError
from loader import ShardIndex
from loader.fleet.supervisor import ScaleReply
from scoring import LogEntry, RunLog, Selection, SelectionConfig, SelectionPort, read_entries

if TYPE_CHECKING:
    from loader import LoaderWorker

LOADER_FACTS = ("name", "state", "node", "pid", "images", "images_per_s", "restarts", "reason")


class WrongState(Exception):
    """The run cannot do this in the state that it is in; the message says what to do."""


class FleetPort(Protocol):
    """The part of `loader.fleet.actors.FleetClient` that the API uses."""

    def status(self) -> dict[str, Any]: ...

    def scale(self, size: int, *, author: str, reason: str = "") -> ScaleReply: ...


@dataclass(frozen=True, slots=True)
class LocalFleet:
    """The loaders of a run in one process; their number is fixed."""

    workers: Sequence[LoaderWorker]

    def status(self) -> dict[str, Any]:
        place = {"state": "ready", "pid": os.getpid(), "node": socket.gethostname(), "restarts": 0, "reason": ""}
        loaders = [{"name": f"local-{n}", **place, **worker.stats()} for n, worker in enumerate(self.workers)]
        return {"size": len(loaders), "author": "run", "reason": "one process", "loaders": loaders}

    def scale(self, size: int, *, author: str, reason: str = "") -> NoReturn:
        raise WrongState("this run has its loaders in its own process; start it under Ray (without --no-ray) to scale.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunBackend:
    """A run's selection and loaders."""

    selection: SelectionPort
    """Draws the windows and takes controls."""
    fleet: FleetPort | None
    """Decodes; None when the run is over."""
    finished_log: Path | None = None
    """run.sqlite of a run that is over: its selection has closed it, so that the run can be resumed meanwhile."""

    @property
    def read_only(self) -> bool:
        return self.finished_log is not None

    def log(self, limit: int | None = None, **bounds: Any) -> list[LogEntry]:
        """Return entries of the run's log; see `scoring.read_entries` for the bounds."""
        if self.finished_log is not None:
            return read_entries(self.finished_log, limit=limit, **bounds)
        return self.selection.log(limit, **bounds)

    def loaders(self) -> dict[str, Any]:
        """Return the answer `models.Loaders`: desired number, author, reason, and each loader's facts."""
        if self.fleet is None:
            return {"desired": 0, "author": "", "reason": "the run is over", "members": [], "scalable": False}
        status = self.fleet.status()
        members = []
        for loader in status["loaders"]:
            # A loader that is still starting has reported nothing yet: its facts are None.
            hits, misses = loader.get("cache_hits", 0), loader.get("cache_misses", 0)
            facts = {name: loader.get(name) for name in LOADER_FACTS}
            members.append(finite({**facts, "hit_rate": hits / (hits + misses) if hits + misses else None}))
        facts = {"desired": status["size"], "author": status["author"], "reason": status["reason"]}
        return {**facts, "members": members, "scalable": not isinstance(self.fleet, LocalFleet)}


def finished_backend(run: RunDir) -> RunBackend:
    """Return the backend of a run that is over, for reading.

    Raises:
        RunError: there is no log, or the run is alive.
    """
    # The selection has restored its table when it is built; the log is closed, for `tempera resume` is its one writer.
    with open_finished_log(run) as (log, config, distance):
        selection = Selection(distance, config, runlog=log)
    return RunBackend(selection=selection, fleet=None, finished_log=run.log)


@contextmanager
def open_finished_log(run: RunDir) -> Iterator[tuple[RunLog, SelectionConfig, NDArray[np.float32] | None]]:
    """Yield the log of a run that is not alive, the configuration of its selection, and its distances, float32[N].

    Raises:
        RunError: there is no log, or the run is alive.
    """
    if run.is_alive:
        raise RunError(f"{run.path} is alive; its log has one writer. Try again when it has stopped.")
    if not run.log.is_file():
        raise RunError(f"{run.path} has no log (run.sqlite is missing): the run has not started.")
    config = load_config(run.config)
    index = ShardIndex.load(config.data.index)
    part = selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)
    with closing(RunLog(run.log)) as log:
        yield log, part, prototype_distances(config)
