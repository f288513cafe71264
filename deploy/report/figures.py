"""The figures of a run for its report, from its files alone: the numbers that `tempera watch` and the page show.

Step, loss, images/s and data wait are those of the last logged step. Effective size, control latency, lost loaders and
bad samples come from the run's log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.api.latency import quantile
from deploy.observe.run_log import knob_history, what
from deploy.report import plots
from deploy.report.report import Section
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from scoring import LogEntry, read_entries

LOG_LINES = 200
"""Newest changes in the report."""
QUIET = ("schedule", "bad_sample", "control_latency")
"""Entries that are too many for the table; the figures count them."""


def figures(run: RunDir) -> dict[str, Any]:
    """Return the figures of a run for the report's table and report.json; None where a figure is not known.

    Returns:
        "step", "loss", "images_per_s", "data_wait", "effective_size", "temperature", "changes" (by people and
        programs), "control_latency_p50_s", "control_latency_p99_s", "loaders_lost", "bad_samples" (draws).
    """
    lines = [line for line in run.metric_lines() if "loss" in line]
    last: dict[str, Any] = lines[-1] if lines else {}
    entries = read_entries(run.log) if run.log.is_file() else []
    laws = [entry for entry in entries if entry.effective_size is not None]
    latencies = [float(entry.value) for entry in _of(entries, "control_latency") if entry.value is not None]
    return {
        **{name: last.get(name) for name in ("step", "loss", "images_per_s", "data_wait")},
        "effective_size": laws[-1].effective_size if laws else None,
        "temperature": _finite(laws[-1].temperature) if laws else None,
        "changes": entries[-1].version if entries else 0,
        "control_latency_p50_s": quantile(latencies, 0.5),
        "control_latency_p99_s": quantile(latencies, 0.99),
        "loaders_lost": len(_of(entries, "loader_lost")),
        "bad_samples": len(_of(entries, "bad_sample")),
    }


def figure_sections(run: RunDir, config: RunConfig) -> list[Section]:
    """Return the report's table of figures, its curve of the effective size, and its table of changes."""
    rows = [(name.replace("_", " "), value) for name, value in figures(run).items()]
    sections = [Section(title="In figures", columns=("", ""), rows=rows)]
    if not run.log.is_file():
        return sections
    curve = _curve(run, config)
    if curve is not None:
        caption = "effective dataset size and temperature by step; where they leave the schedule, a person held them"
        sections.append(Section(title="What the model saw", pictures={curve: caption}))
    changes = read_entries(run.log, limit=LOG_LINES, without=QUIET)
    if changes:
        columns = ("time", "author", "what", "window", "step", "why")
        sections.append(Section(title="Who changed what", columns=columns, rows=[_row(entry) for entry in changes]))
    return sections


def _row(entry: LogEntry) -> Sequence[object]:
    time = datetime.fromtimestamp(entry.time).strftime("%Y-%m-%d %H:%M:%S")
    words = what({"kind": entry.kind, "value": entry.value})
    return time, entry.author, words, entry.window, entry.step, entry.reason


def _finite(temperature: float | None) -> float | None:
    """Return None for the infinite temperature of uniform draws."""
    return None if temperature is None or math.isinf(temperature) else temperature


def _of(entries: Sequence[LogEntry], kind: str) -> list[LogEntry]:
    return [entry for entry in entries if entry.kind == kind]


def _curve(run: RunDir, config: RunConfig) -> Path | None:
    """Draw the effective size; None for a policy without one, or an adaptive schedule."""
    lines = run.metric_lines(tail=1)
    laws = [entry for entry in read_entries(run.log) if entry.effective_size is not None]
    steered = any(_finite(entry.temperature) is not None for entry in laws)
    if config.curriculum.adaptive or not lines or not steered or laws[0].temperature is None:
        return None
    schedule, train = config.curriculum.schedule_by_progress(), config.train
    knob = knob_history(
        run,
        initial=(laws[0].effective_size or schedule(0.0), laws[0].temperature),
        window_steps=train.window_steps,
        total_steps=lines[0]["step"],
    )
    path = run.report / "effective_size.png"
    scheduled = [schedule(min(1.0, step / train.total_steps)) for step in knob.steps]
    plots.effective_size(
        path, steps=knob.steps, used=knob.effective_size, scheduled=scheduled, temperature=knob.temperature
    )
    return path
