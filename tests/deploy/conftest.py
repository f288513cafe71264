from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.api.client import RunClient
from deploy.runs.config import DataConfig, RunConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir


@pytest.fixture
def config(digits: DataConfig) -> RunConfig:
    """A run of a second on the digits."""
    steps = ("train.total_steps=16", "train.checkpoint_every=4", "train.window_steps=4")
    small = ("train.model.width=48", "train.model.depth=1", "train.model.heads=3", "train.model.decoder_depth=1")
    return override(debug(digits), (*steps, *small, "pictures=false"))


@pytest.fixture
def client(run: RunDir) -> Iterator[RunClient]:
    with RunClient.attach(run) as client:
        yield client
