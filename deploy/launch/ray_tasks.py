"""Independent tasks over Ray: the work that `loader.in_processes` does on one machine, spread over a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from deploy.launch.cluster import cluster
from deploy.runs.rundir import RunError

STALL_S = 3600.0
"""Longest time in which no task ends."""
POLL_S = 1.0


@contextmanager
def over_ray(workers: int) -> Iterator[Callable[..., Iterator[tuple[int, Any]]]]:
    """Yield a runner over the Ray that RAY_ADDRESS names, or over one on this machine, until the block ends.

    It is the `run` argument of the loader's functions, and runs `workers` tasks at a time, each with one CPU. Files
    that tasks read and write must be reachable from every node.

    Raises:
        ValueError: workers is less than 1.
    """
    if workers < 1:
        raise ValueError(f"the number of workers must be at least 1; got {workers}.")
    with tempfile.TemporaryDirectory(prefix="tempera-") as scratch, cluster(Path(scratch), num_cpus=workers):
        yield partial(run_tasks, workers=workers)


def run_tasks(function: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int) -> Iterator[tuple[int, Any]]:
    """Run a function on every task over the Ray that this process is connected to.

    Yields:
        (number of the task, its result) as they end.

    Raises:
        RunError: nothing ends for an hour.
    """
    import ray
    from ray.exceptions import RayTaskError

    # The function is an argument, because `ray.remote` itself takes no partial.
    call: Any = ray.remote(num_cpus=1, max_retries=3)(lambda function, task: function(task))
    numbers = iter(range(len(tasks)))
    running: dict[Any, int] = {}
    waited_s = 0.0
    while True:
        # Two a worker, so that none is idle between two tasks; not all at once, since the list may be long.
        while len(running) < 2 * workers and (number := next(numbers, None)) is not None:
            running[call.remote(function, tasks[number])] = number
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
        waited_s = 0.0 if done else waited_s + POLL_S
        if waited_s > STALL_S:
            raise RunError(
                f"no task ended within {STALL_S:.0f} s. `ray status` shows whether the cluster has CPUs free."
            )
        for reference in done:
            try:
                result = ray.get(reference, timeout=POLL_S * 60)
            except RayTaskError as error:  # callers handle the task's own exception, as in one process
                raise error.cause from error
            yield running.pop(reference), result
