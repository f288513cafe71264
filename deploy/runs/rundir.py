"""The directory of a run: the paths of its files, and the lock of the process that drives it.

config.json      the resolved configuration, written before the first step
run.sqlite       control log, windows, scores, bad samples (scoring.RunLog); its lock and snapshots beside it
metrics.jsonl    one JSON line for each logged step (trainer)
checkpoints/     step-N/ with safetensors and JSON
report/          pictures, report.json, report.html
tensorboard/     the numbers and pictures for TensorBoard
ray.log          output of Ray's workers
cluster.json     only while the run is alive: address of its actors
api.json         only while the run is alive: address of its HTTP API; api-token beside it, readable by its owner only
consumed.jsonl   batches that the trainer has consumed since the last start
stop, pause      requests to write a checkpoint and stop, or to pause
.lock            held by the process that drives the run
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class RunError(ValueError):
    """A run directory cannot be used as requested; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """How to reach a live run."""

    address: str
    """host:port of the Ray head."""
    namespace: str
    """Ray namespace of the run's actors."""
    token_path: str
    """File with the cluster's token, readable by its owner only; empty where the environment brings the token."""
    pid: int
    """Process that drives the run."""
    dashboard: str
    """Address of the Ray dashboard, or an empty string."""
    selection: str = "selection"
    """Name of the selection service's actor."""
    fleet: str = "fleet"
    """Name of the loader fleet's actor."""


class RunDir:
    """Paths of one run and the few files that deploy itself writes. Making an instance touches no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.log = path / "run.sqlite"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.report = path / "report"
        self.consumed = path / "consumed.jsonl"
        # While one of these two exists, the ranks write a checkpoint and stop, or pause. They are files because ranks
        # on other nodes share this folder, and see them without a call to the driver.
        self.stop_request = path / "stop"
        self.pause_request = path / "pause"
        self.api = path / "api.json"
        self.api_token = path / "api-token"

    def require(self) -> RunDir:
        """Return this directory if it holds a run.

        Raises:
            RunError: there is no run here.
        """
        if not self.config.is_file():
            raise RunError(
                f"no run in {self.path} (config.json is missing). `tempera train NAME --out {self.path}` starts one."
            )
        return self

    def endpoint(self) -> Endpoint | None:
        """Return the addresses of the run's actors, or None when it is not alive."""
        try:
            endpoint = Endpoint(**json.loads((self.path / "cluster.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        # A driver that was killed leaves its file behind, so the process decides and not the file.
        return endpoint if _alive(endpoint.pid) else None

    def api_url(self) -> str | None:
        """Return the address of the run's HTTP API, or None when it is not alive."""
        try:
            address = json.loads(self.api.read_text())
            return str(address["url"]) if _alive(int(address["pid"])) else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    @property
    def is_alive(self) -> bool:
        """Tell whether a process of this machine drives the run, with or without Ray."""
        return self.api_url() is not None or self.endpoint() is not None

    @contextmanager
    def published(self, endpoint: Endpoint) -> Iterator[None]:
        """Write the addresses of the run's actors to cluster.json, and remove it when the block ends."""
        write_json(self.path / "cluster.json", asdict(endpoint))
        try:
            yield
        finally:
            (self.path / "cluster.json").unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run for this process until the block ends; the kernel releases the lock however the process ends.

        Raises:
            RunError: another process drives this run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # "a+" and not "w": opening must not erase the pid of the process that holds the lock.
        with (self.path / ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise RunError(
                    f"another process drives {self.path} (pid {holder}). Wait for it, stop it, or take another --out."
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def metric_lines(self, *, tail: int | None = None) -> list[dict[str, Any]]:
        """Return the logged steps in order, or only the last `tail` of them; an empty list before the first.

        Raises:
            ValueError: a line before the last is not JSON.
        """
        from trainer.record.metrics import read_metrics

        lines = read_metrics(self.metrics)
        return lines[-tail:] if tail else lines


def write_json(path: Path, value: object) -> None:
    """Write JSON to a temporary file and rename it, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def find_run(path: Path | None, *, root: Path = Path("runs")) -> RunDir:
    """Return the named run, or the only one alive under `root`, or the newest there.

    Raises:
        RunError: none, or several are alive and none was named.
    """
    if path is not None:
        return RunDir(path).require()
    runs = sorted(
        (RunDir(config.parent) for config in root.glob("*/config.json")), key=lambda run: run.config.stat().st_mtime
    )
    alive = [run for run in runs if run.is_alive]
    if len(alive) > 1:
        raise RunError(f"several runs are alive: {', '.join(str(run.path) for run in alive)}. Name one with --run.")
    if not runs:
        raise RunError(f"no run under {root.resolve()}. `tempera demo` makes one; or name a run directory with --run.")
    return alive[0] if alive else runs[-1]


def _alive(pid: int) -> bool:
    """Tell whether a process exists on this machine; signal 0 only asks."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to another user
        return True
    return True
