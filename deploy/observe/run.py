"""`observed`: follow a run with TensorBoard and the trackers that TEMPERA_TRACKERS names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from deploy.observe.follow import following
from deploy.observe.trackers import build_trackers
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir

TRACKERS = "TEMPERA_TRACKERS"
"""Environment variable: services beside TensorBoard, separated by commas. Not part of a run's configuration: they do
not change what a run computes, and a resumed run may have others."""


@contextmanager
def observed(config: RunConfig, run: RunDir, *, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Follow a run with its trackers until the block ends. MLflow and W&B keep its configuration beside its curves.

    Raises:
        ValueError: TEMPERA_TRACKERS names a service that is unknown or not installed.
    """
    services = tuple(name.strip() for name in environment.get(TRACKERS, "").split(",") if name.strip())
    trackers = build_trackers(run.path / "tensorboard", services, name=config.name, config=asdict(config))
    with following(run, trackers):
        yield
