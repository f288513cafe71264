"""Runners of independent tasks: in this process, in several, or over Ray (`deploy`). All give equal results."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Runner(Protocol):
    """Runs a function on every task."""

    def __call__(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """Yield (number of the task, its result) as results come, in any order. A task's error ends the iteration."""


def run_serially(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    """Run the tasks in this process, one after another."""
    for number, task in enumerate(tasks):
        yield number, function(task)


def in_processes(processes: int) -> Runner:
    """Return a runner on several processes of this machine; with 1 the tasks run in this process.

    Raises:
        ValueError: If `processes` is less than 1.
    """
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1; got {processes}")

    def run(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        if min(processes, len(tasks)) <= 1:
            yield from run_serially(function, tasks)
            return
        # The server that forks has no threads and has imported us once. A fork of this process could deadlock on a lock
        # that another thread holds at that moment.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["loader"])
        pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context)
        try:
            # All tasks are submitted at once, and results are taken as they end: no slow task holds others up.
            numbers = {pool.submit(function, task): number for number, task in enumerate(tasks)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    return run
