"""Training progress as lines of a log: a job without a terminal writes them, `tempera jobs` reads them."""

from __future__ import annotations

import json
from typing import Any

MARK = "tempera-progress "
SWITCH = "TEMPERA_PROGRESS"
"""Environment variable by which a job asks for lines instead of a bar."""
LINES = "lines"
"""Its value for that."""


def encode(facts: dict[str, Any]) -> str:
    """Return one line with the facts "step", "total_steps", "loss" and "images_per_s"."""
    return MARK + json.dumps(facts)


def decode(line: str) -> dict[str, Any] | None:
    """Return the facts of such a line; None for any other line of a job's log.

    A log may hold text from anywhere, so a line that only looks like one of ours must not end `tempera jobs`.
    """
    if not line.startswith(MARK):
        return None
    try:
        facts = json.loads(line[len(MARK) :])
    except json.JSONDecodeError:
        return None
    return facts if isinstance(facts, dict) and {"step", "total_steps"} <= set(facts) else None
