"""The run log as rows and as a table: author, change, reason, and the window from which it is in force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deploy.console import table
from deploy.runs.rundir import RunDir, RunError

if TYPE_CHECKING:
    from scoring import LogEntry

SHOWN_CHARACTERS = 72
"""Longer reasons are cut in the table; --json and the report have them whole."""
LOADER = "loader_"
"""Prefix of the fleet's entries about one loader; their value is the fleet's size, which is not shown."""
SCHEDULE = "schedule"
"""Kind of the entries that the trainer causes at each window."""


def log_entries(run: RunDir, *, limit: int, changes_only: bool = False) -> list[dict[str, Any]]:
    """Return the last entries of a run's log, oldest first, as JSON-able dictionaries. The run may be alive.

    `changes_only` leaves out the schedule's entries of each window.

    Raises:
        RunError: the run has no log.
    """
    if not run.log.is_file():
        raise RunError(f"{run.path} has no log yet (run.sqlite is missing): the run has not started.")
    from scoring import read_entries  # late: it imports pyarrow, which `tempera watch` of a live run does without

    entries = read_entries(run.log, limit=limit, without=(SCHEDULE,) if changes_only else ())
    return [plain_entry(entry) for entry in entries]


def log_table(entries: Sequence[dict[str, Any]]) -> Table:
    """Return the entries of `log_entries` as a table for the terminal."""
    rows = []
    for entry in entries:
        in_force = ""
        if entry["effective_size"] is not None:
            in_force = f"{entry['effective_size']:.3f}"
            in_force += "" if entry["temperature"] is None else f", tau {entry['temperature']:.3g}"
        reason = entry["reason"] if entry["in_force"] else "recorded; a person's value holds"
        if len(reason) > SHOWN_CHARACTERS:
            reason = reason[: SHOWN_CHARACTERS - 3] + "..."
        time = datetime.fromtimestamp(entry["time"]).strftime("%H:%M:%S")
        rows.append((time, entry["author"], describe_entry(entry), entry["window"], entry["step"], in_force, reason))
    return table("run log", ("time", "author", "what", "window", "step", "in force", "why"), rows)


def describe_entry(entry: dict[str, Any]) -> str:
    """Return an entry's kind and the value that it set, as in "effective size 0.35" or "loader lost"."""
    value = entry["value"]
    shown = "" if value is None else f" {value:.4g}" if isinstance(value, float) else f" {value}"
    return f"{entry['kind']}{'' if entry['kind'].startswith(LOADER) else shown}".replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """The values in force; each list has one for each window."""

    steps: list[int]
    """First optimizer step of the window."""
    effective_size: list[float]
    """Effective dataset size in force, a fraction of the data."""
    temperature: list[float]


def knob_history(run: RunDir, *, initial: tuple[float, float], window_steps: int, total_steps: int) -> Knob:
    """Return effective size and temperature of every window of a run, derived from its log.

    `initial` holds the two before the first entry.
    """
    from scoring import read_entries

    # Of several entries for one window the last is in force.
    changes = {entry.window: entry for entry in read_entries(run.log) if entry.effective_size is not None}
    knob = Knob(steps=[], effective_size=[], temperature=[])
    size, temperature = initial
    # The log has only changes: a window without an entry keeps the values of the one before.
    for window in range(math.ceil(total_steps / window_steps)):
        if window in changes:
            # NaN leaves a gap in the curve, where a policy has no effective size or no temperature.
            size, temperature = changes[window].effective_size or math.nan, changes[window].temperature or math.nan
        knob.steps.append(window * window_steps)
        knob.effective_size.append(size)
        knob.temperature.append(temperature)
    return knob


def plain_entry(entry: LogEntry) -> dict[str, Any]:
    """Return an entry as JSON values. JSON has no infinity, the temperature of uniform draws: it becomes None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(entry).items()
    }
