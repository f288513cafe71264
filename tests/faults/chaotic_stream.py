"""Consumes a stream over Ray actors, in a process of its own whose network Ray was told to spoil."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from loader import BatchStream, LoaderConfig, ShardIndex
from scoring import Selection
from tests.faults.consuming import CONFIG, consume, local_loaders
from tests.scoring.configs import selection_config

STEPS = 64


def lost_calls(driver: int) -> int:
    """How many calls or answers were lost on purpose in the cluster that a process started; Ray writes down each."""
    logs = [path for path in Path("/tmp/ray").glob(f"session_*_{driver}/logs/*") if path.is_file()]
    return sum(path.read_bytes().count(b"Inject RPC") for path in logs)


def disarm(defence: str) -> None:
    """Take away what makes up for lost calls."""
    import scoring.actors
    from loader.batches.assembly import Assembler

    if defence == "loader":
        Assembler._reroute = Assembler._hedge = lambda self, *request: None
    elif defence == "selection":
        scoring.actors.RETRY_PAUSE_S = 1e9


def main(index_path: str, runlog: str, without: str = "") -> None:
    """Print what came under Ray, and what comes in this process without it."""
    import ray

    from loader.actors import RayLoaders
    from loader.fleet.actors import start_fleet
    from scoring.actors import start_selection

    index = ShardIndex.load(index_path)
    config = replace(CONFIG, total_steps=STEPS, stall_timeout_s=10.0 if without else CONFIG.stall_timeout_s)
    part = selection_config(
        seed=4, global_batch=config.global_batch, window_steps=config.window_steps, num_samples=len(index),
        policy="uniform_replacement",
    )  # fmt: skip
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    selection = start_selection(part, runlog=runlog, name="selection-chaos")
    with closing(start_fleet(index_path, LoaderConfig(), size=3, num_cpus=0)) as fleet:
        disarm(without)
        stream = BatchStream(selection, RayLoaders(fleet), config)
        seen = consume(stream, step_s=0.1)
    selection.stop()
    ray.shutdown()
    lost = lost_calls(os.getpid())
    with local_loaders(index_path, 1) as pool:
        alone = consume(BatchStream(Selection(None, part), pool, config))
    rerouted = stream.stats()["rerouted"] + stream.stats()["hedged"]
    answer = {"under_ray": seen.digest, "in_process": alone.digest, "steps": len(seen.lines), "rerouted": rerouted}
    answer["lost"] = lost
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
