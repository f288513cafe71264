"""Runs independent tasks in this process or in several; `deploy` brings a third way, over Ray. All give the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Runner(Protocol):
    """Runs a function on every task."""

    def __call__(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """Yield (number of the task, its result) as results come, in any order. A task's error ends it all."""


def here(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    """Run the tasks in this process, one after another."""
    for number, task in enumerate(tasks):
        yield number, function(task)


def in_processes(processes: int) -> Runner:
    """Return a runner with so many processes of this machine; 1 runs the tasks here.

    Args:
        processes: 1 or more.

    Raises:
        ValueError: If it is less than 1.
    """
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1; got {processes}")

    def run(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        if min(processes, len(tasks)) <= 1:
            yield from here(function, tasks)
            return
        # Forks of a process without threads, which has imported us once: a fork of this one might hang.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["loader"])
        pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context)
        try:
            numbers = {pool.submit(function, task): number for number, task in enumerate(tasks)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    return run
