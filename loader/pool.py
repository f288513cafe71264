"""The loaders that a stream uses: in this process here, or Ray actors behind the same interface in `loader.actors`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_futures
from typing import Any, Protocol

from loader.batch import BatchSpec, Pixels
from loader.errors import LoaderLost
from loader.worker import LoaderWorker

Handle = Hashable
"""A request under way, opaque to all but its pool."""


class LoaderPool(Protocol):
    """Sends specs to loaders and collects pixels. Any member can serve any spec."""

    def members(self) -> tuple[str, ...]:
        """Return the names of the loaders believed to be alive, without waiting: a stream asks many times a second."""

    def submit(self, member: str, spec: BatchSpec) -> Handle:
        """Send a spec to a loader.

        Raises:
            LoaderLost: It is known to be gone.
        """

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> list[Handle]:
        """Return the requests that are done, waiting at most `timeout_s` for the first."""

    def result(self, handle: Handle) -> Pixels:
        """Return the pixels of a request that is done.

        Raises:
            LoaderLost: Its loader died, or its answer was lost.
        """

    def release(self, handle: Handle) -> None:
        """Give back the pixels of a request: their memory may be used again."""

    def observe(self, wait_share: float) -> None:
        """Report the share of its time that the trainer waited since the last report, without waiting."""

    def explain(self, members: Sequence[str]) -> dict[str, str]:
        """Return what each member waits for, as far as it answers within a few seconds."""


class LocalLoaders:
    """Loaders in this process, one request at a time each; their threads do the work. Closed with the pool.

    Raises:
        ValueError: There are no workers.
    """

    def __init__(self, workers: Sequence[LoaderWorker]) -> None:
        if not workers:
            raise ValueError("LocalLoaders needs at least one LoaderWorker")
        self._workers = {f"local-{number}": worker for number, worker in enumerate(workers)}
        # One thread for each: further requests queue, as they do at an actor.
        self._queues = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in self._workers}

    def members(self) -> tuple[str, ...]:
        return tuple(self._workers)

    def submit(self, member: str, spec: BatchSpec) -> Handle:
        if member not in self._workers:
            raise LoaderLost(f"there is no loader {member}")
        return self._queues[member].submit(self._workers[member].load, spec)

    def wait(self, handles: Sequence[Any], timeout_s: float) -> list[Handle]:
        return list(wait_futures(handles, timeout_s, FIRST_COMPLETED).done)

    def result(self, handle: Any) -> Pixels:
        future: Future[Pixels] = handle
        return future.result(0)

    def release(self, handle: Handle) -> None:
        """Do nothing: every request has its own memory."""

    def observe(self, wait_share: float) -> None:
        """Do nothing: the number of these loaders is fixed."""

    def explain(self, members: Sequence[str]) -> dict[str, str]:
        return {name: self._workers[name].waits_for() for name in members}

    def close(self) -> None:
        for name, worker in self._workers.items():
            self._queues[name].shutdown(cancel_futures=True)
            worker.close()
