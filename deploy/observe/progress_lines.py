"""Training progress as lines of a log: a job without a terminal writes them, `tempera jobs` reads them."""

from __future__ import annotations

import json
import os
from typing import Any

MARK = "tempera-progress "
SWITCH = "TEMPERA_PROGRESS"
"""Environment variable."""
LINES = "lines"
"""Its value for lines instead of a bar."""


def wanted() -> bool:
    """Tell whether the environment asks for lines."""
    return os.environ.get(SWITCH) == LINES


def encode(facts: dict[str, Any]) -> str:
    """Return one line with the facts "step", "total_steps", "loss" and "images_per_s"."""
    return MARK + json.dumps(facts)


def decode(line: str) -> dict[str, Any] | None:
    """Return the facts of such a line; None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        facts = json.loads(line[len(MARK) :])
    except json.JSONDecodeError:
        return None
    return facts if isinstance(facts, dict) and {"step", "total_steps"} <= set(facts) else None
