"""Processes that compute nothing import no torch: the modules that each entry point must not import, by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMPUTE = ("torch", "torchvision", "timm", "matplotlib", "sklearn", "skimage", "cv2")
FRAMES = ("pandas", "scipy")
SERVERS = ("fastapi", "uvicorn")
FORBIDDEN = {
    "deploy.cli": (*COMPUTE, *FRAMES, *SERVERS, "ray"),
    "deploy.commands.runs": (*COMPUTE, *FRAMES, *SERVERS, "ray", "pyarrow"),
    "deploy.api.client": (*COMPUTE, *FRAMES, *SERVERS, "ray", "pyarrow", "numpy"),
    "deploy.runs.recipes": (*COMPUTE, *FRAMES, *SERVERS, "ray"),
    "deploy.runs.overrides": (*COMPUTE, *FRAMES, *SERVERS, "ray"),
    "deploy.observe.run": (*COMPUTE, *FRAMES, *SERVERS, "ray"),
    "deploy.launch.launch": (*COMPUTE, *FRAMES, *SERVERS, "ray", "faiss"),
    "deploy.launch.rank": ("matplotlib", "faiss"),
    "loader.fleet.actors": (*COMPUTE, *SERVERS),
    "scoring.actors": (*COMPUTE, *SERVERS, "faiss"),
    "trainer.actors": (*COMPUTE, *SERVERS),
}
"""Entry point -> modules that it must not import; Ray's own modules import pandas."""

VERIFY = """
import sys
from deploy.runs.config import DataConfig, load_config, save_config
from deploy.runs.recipes import RUNS
from loader import ShardIndex
from pathlib import Path
config = RUNS["debug"](DataConfig(index=sys.argv[1]))
save_config(config, Path(sys.argv[2]))
assert load_config(Path(sys.argv[2])) == config
ShardIndex.load(sys.argv[1]).verify()
"""

TRAIN = """
import sys
from pathlib import Path
import ray
import deploy.launch.launch as launch
import trainer.actors
from deploy.runs.config import DataConfig
from deploy.runs.recipes import RUNS
from deploy.runs.rundir import Endpoint, RunDir
jobs = []
trainer.actors.train_on_ray = lambda job, **options: jobs.append(job)
endpoint = Endpoint(address="", namespace="", token_path="", pid=0, dashboard="")
launch._train_on_ray(RUNS["debug"](DataConfig(index=sys.argv[1])), RunDir(Path(sys.argv[2])), endpoint)
assert jobs
"""


def imported_after(program: str, *arguments: object) -> set[str]:
    """Run a program in a new interpreter and return the top-level modules that it has imported."""
    program += "\nimport sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True, text=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("entry", FORBIDDEN)
def test_an_entry_point_imports_nothing_heavy(entry: str) -> None:
    assert not imported_after(f"import {entry}") & set(FORBIDDEN[entry])


def test_a_config_is_read_and_an_index_verified_without_torch(digits, tmp_path) -> None:
    assert not imported_after(VERIFY, digits.index, tmp_path / "config.json") & {*COMPUTE, "pandas"}


def test_a_driver_hands_its_job_to_ray_train_without_torch(digits, tmp_path) -> None:
    assert not imported_after(TRAIN, digits.index, tmp_path) & set(COMPUTE)


def test_tensorboard_is_written_without_torch(tmp_path) -> None:
    program = """
import sys
from pathlib import Path
from deploy.observe.trackers import TensorBoard
board = TensorBoard(Path(sys.argv[1]))
board.scalars(1, 0.0, {"loss/loss": 1.0})
board.close()
"""
    assert not imported_after(program, tmp_path) & set(COMPUTE)
    assert list(tmp_path.glob("events.out.tfevents.*"))
