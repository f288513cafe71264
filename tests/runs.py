"""What tests of live runs share: waiting for a condition, and the loss curve."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.runs.rundir import RunDir
from trainer import read_metrics


def wait_for(
    condition: Callable[[], Any],
    what: str,
    *processes: subprocess.Popen[Any],
    patience_s: float = 300.0,
    log: Path | None = None,
) -> Any:
    """Return the first true value of a condition; fail when one of the processes ends, or after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not (found := _answer(condition)):
        ended = [process for process in processes if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            words = [log.read_text()] if log else [str(process.stderr.read()) for process in ended if process.stderr]
            state = "a process ended" if ended else f"not within {patience_s:g} s"
            raise AssertionError(f"{what} must happen; {state}. {''.join(words)[-2000:]}")
        time.sleep(0.05)
    return found


def _answer(condition: Callable[[], Any]) -> Any:
    try:
        return condition()
    except OSError:  # a server that does not listen yet
        return None


def losses(run: RunDir | Path) -> list[tuple[int, float]]:
    """Return (step, loss) of every step that a run's metrics hold."""
    folder = run.path if isinstance(run, RunDir) else run
    return [(line["step"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
