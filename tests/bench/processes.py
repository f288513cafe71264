"""Measures what a small run holds and how soon it trains: `python -m tests.bench.processes`.

1. Index and score the handwritten digits in a temporary folder.
2. Start `tempera train tiny` under Ray with two loaders; wait for its first logged step; read the proportional set size
   (PSS) of all its processes when it has trained for some seconds; stop it.
3. Start a bare Ray Train script that trains a ViT of the same shape on random images; wait for its first step.

Prints one JSON object: MB by role, the total, seconds to the first step of both, and their ratio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.runs import wait_for
from tests.soak.processes import Processes

PATIENCE_S = 300.0
SETTLED_S = 8.0
ROLES = {
    "ray::LoaderActor": "loaders",
    "ray::LoaderFleet": "fleet",
    "ray::SelectionService": "selection",
    "ray::RayTrainWorker": "ranks",
    "ray::TrainController": "controller",
    "deploy.cli": "driver",
    "gcs_server": "ray gcs",
    "raylet": "ray raylet",
    "ray::IDLE": "ray idle workers",
}
BARE = """
import os
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def loop():
    import timm, torch
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=3, embed_dim=96, num_heads=3)
    optimizer = torch.optim.AdamW(model.parameters())
    loss = model(torch.randn(128, 3, 32, 32)).square().mean()
    loss.backward()
    optimizer.step()
    open(os.environ["FIRST"], "w").close()

ray.init(address="local", num_cpus=6, include_dashboard=True, log_to_driver=False)
scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 2})
TorchTrainer(loop, scaling_config=scaling, run_config=RunConfig(storage_path=os.environ["STORAGE"])).fit()
"""


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process: shared pages are divided by the number of their users."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def role(pid: int) -> str:
    """Return the role of a process by its command line."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "ended"
    return next((name for mark, name in ROLES.items() if mark in title), "ray services")


def seconds_until(path: Path, process: subprocess.Popen[bytes], began: float) -> float:
    """Return the seconds from `began` until a file exists."""
    wait_for(path.exists, "the first step", process, patience_s=PATIENCE_S)
    return time.monotonic() - began


def our_run(folder: Path) -> dict[str, Any]:
    """Start `tiny`, and return its seconds to the first step and MB by role."""
    from deploy.studies.demo.data import prepare
    from deploy.studies.prototypes.job import score

    data = prepare(folder / "data", images=None, shards=())
    score(data.index, data.index.parent / "prototypes.parquet", num_clusters=20)
    run, found = folder / "run", Processes()
    command = ["train", "tiny", "--index", str(data.index), "--out", str(run), "--set", "pictures=false"]
    settings = ["train.log_every=1", "train.total_steps=100000", "train.warmup_steps=40"]
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "deploy.cli", *command, *settings], env=found.environment)
    try:
        first_s = seconds_until(run / "metrics.jsonl", process, began)
        time.sleep(SETTLED_S)
        held: Counter[str] = Counter()
        for pid in found.alive():
            held[role(pid)] += pss_bytes(pid)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    megabytes = {name: round(size / 1e6) for name, size in held.most_common()}
    return {"first_step_s": round(first_s, 1), "pss_mb": megabytes, "total_mb": sum(megabytes.values())}


def bare_first_step(folder: Path) -> float:
    """Start the bare script and return its seconds to the first step."""
    script, first = folder / "bare.py", folder / "first-step"
    script.write_text(BARE)
    began = time.monotonic()
    environment = os.environ | {"FIRST": str(first), "STORAGE": str(folder / "bare"), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    try:
        return seconds_until(first, process, began)
    finally:
        process.wait(PATIENCE_S)


def main() -> None:
    """Measure both and print the figures."""
    with tempfile.TemporaryDirectory(prefix="tempera-bench-") as name:
        folder = Path(name)
        ours = our_run(folder)
        bare_s = bare_first_step(folder)
    print(json.dumps({**ours, "bare_first_step_s": round(bare_s, 1), "ratio": round(ours["first_step_s"] / bare_s, 2)}))


if __name__ == "__main__":
    main()
