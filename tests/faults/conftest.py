"""Rows of the fault table: each test of one says what it injected, and how long the run took to get over it.

TEMPERA_FAULT_RECORDS names a file that the rows are added to; `python -m tests.faults.table FILE` makes a table of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.runs.config import DataConfig
from loader import ShardIndex

Note = Callable[..., None]


@pytest.fixture
def note(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Note:
    """`note("loader SIGKILL", recovery_s=[0.4, 0.6], goal="3 s p95")`: one line of the table."""

    def add(row: str, *, recovery_s: list[float] | None = None, goal: str = "", seen: str = "") -> None:
        times = sorted(round(value, 2) for value in recovery_s or [])
        line = {"row": row, "recovery_s": times, "goal": goal, "seen": seen, "test": request.node.name}
        record_property("fault", json.dumps(line))
        path = os.environ.get("TEMPERA_FAULT_RECORDS")
        if path:
            with Path(path).open("a") as file:
                file.write(json.dumps(line) + "\n")

    return add


@pytest.fixture(scope="module")
def index(digits: DataConfig) -> ShardIndex:
    return ShardIndex.load(digits.index)
