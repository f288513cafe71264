"""Training progress as lines of a log: written by a process that nobody watches, read by who follows its log."""

from __future__ import annotations

import json
import os
from typing import Any

MARK = "tempera-progress "
SWITCH = "TEMPERA_PROGRESS"
"""Environment variable."""
LINES = "lines"
"""Its value that asks for these lines instead of a bar."""


def wanted() -> bool:
    """Whether this process is asked for lines."""
    return os.environ.get(SWITCH) == LINES


def encode(facts: dict[str, Any]) -> str:
    """One line: {"step", "total_steps", "loss", "images_per_s"}."""
    return MARK + json.dumps(facts)


def decode(line: str) -> dict[str, Any] | None:
    """The facts of such a line; None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        facts = json.loads(line[len(MARK) :])
    except json.JSONDecodeError:
        return None
    return facts if isinstance(facts, dict) and {"step", "total_steps"} <= set(facts) else None
