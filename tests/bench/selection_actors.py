"""How fast windows reach many trainers through Ray; `python -m tests.bench.selection` starts a cluster for it.

A few processes hold the trainers as threads, each with a client of its own that asks as a rank does. A round draws a
new window first; then all ask for it at one moment. Asking and serving share this machine's cores.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deploy.launch.cluster import local_cluster

TRAINERS, PROCESSES, ROUNDS = 256, 4, 7
NUM_SAMPLES, GLOBAL_BATCH, WINDOW_STEPS = 1_280_000, 4096, 16
START_DELAY_S = 0.3
NAME = "selection-bench"


class TrainerProcess:
    """The class of an actor that stands for some trainers on one node."""

    def __init__(self, trainers: int) -> None:
        from scoring.actors import SelectionClient

        self._clients = [SelectionClient(name=NAME) for _ in range(trainers)]
        for client in self._clients:
            client.window(0)  # connected, as trainers are in the middle of a run

    def ask(self, index: int, at_s: float) -> list[float]:
        """Every trainer asks for a window at this time of the clock; seconds until each had it."""

        def ask(client: Any) -> float:
            time.sleep(max(0.0, at_s - time.time()))
            start = time.perf_counter()
            client.window(index)
            return time.perf_counter() - start

        with ThreadPoolExecutor(len(self._clients)) as threads:
            return list(threads.map(ask, self._clients))


def bench_window_requests() -> dict[str, float]:
    """Return "window_p99_ms_256_trainers", the median over the rounds, and with "_best" the best, in a new cluster."""
    with tempfile.TemporaryDirectory() as name, local_cluster(Path(name), num_cpus=PROCESSES):
        return measure_requests(Path(name))


def measure_requests(
    directory: Path, *, trainers: int = TRAINERS, rounds: int = ROUNDS, num_samples: int = NUM_SAMPLES
) -> dict[str, float]:
    """Measure in the cluster that this process has joined; `trainers` is a multiple of PROCESSES."""
    client = _start(directory, num_samples)
    try:
        p99_ms = _rounds(client, trainers, rounds)
    finally:
        client.stop()
    name = f"window_p99_ms_{trainers}_trainers"
    return {name: round(float(np.median(p99_ms)), 3), f"{name}_best": round(min(p99_ms), 3)}


def _start(directory: Path, num_samples: int) -> Any:
    from scoring import Prototypes, SelectionConfig
    from scoring.actors import start_selection

    distance = np.random.default_rng(0).random(num_samples, dtype=np.float32)
    one = np.zeros((1, 1), np.float32)
    file, cluster = directory / "prototypes.parquet", np.zeros(num_samples, np.int32)
    Prototypes(distance=distance, cluster=cluster, centroids=one, davies_bouldin={}).save(file)
    config = SelectionConfig(seed=1, global_batch=GLOBAL_BATCH, window_steps=WINDOW_STEPS)
    return start_selection(config, runlog=directory / "run.sqlite", prototypes=file, name=NAME)


def _rounds(client: Any, trainers: int, rounds: int) -> list[float]:
    """99th percentile of each round, in milliseconds."""
    import ray

    from scoring.actors import SelectionClient

    drawing = SelectionClient(name=NAME)
    drawing.window(0)
    make: Any = ray.remote(TrainerProcess).options(num_cpus=0)
    processes = [make.remote(trainers // PROCESSES) for _ in range(PROCESSES)]
    p99_ms = []
    for _ in range(rounds):
        index = client.state()["next_window"]
        drawing.window(index)
        at_s = time.time() + START_DELAY_S
        seconds = ray.get([process.ask.remote(index, at_s) for process in processes], timeout=60.0)
        p99_ms.append(float(np.quantile(np.concatenate(seconds), 0.99)) * 1e3)
    for process in processes:
        ray.kill(process)
    return p99_ms
