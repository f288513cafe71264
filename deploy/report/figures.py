"""The figures of a run for its report, from its files alone: the numbers that `tempera watch` and the page show.

Step, loss, images/s and data wait are those of the last logged step. Effective size, control latency, lost loaders and
bad samples come from the run's log.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.api.latency import quantile
from deploy.observe.run_log import describe_entry, knob_history
from deploy.report import plots
from deploy.report.report import Section
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from scoring import read_entries

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
    sized = [entry for entry in entries if entry.effective_size is not None]
    temperature = sized[-1].temperature if sized else None
    values = [entry.value for entry in entries if entry.kind == "control_latency"]
    latencies = [float(value) for value in values if value is not None]
    kinds = Counter(entry.kind for entry in entries)
    return {
        **{name: last.get(name) for name in ("step", "loss", "images_per_s", "data_wait")},
        "effective_size": sized[-1].effective_size if sized else None,
        # Uniform draws have an infinite temperature, which JSON cannot hold.
        "temperature": None if temperature is None or math.isinf(temperature) else temperature,
        "changes": entries[-1].version if entries else 0,
        "control_latency_p50_s": quantile(latencies, 0.5),
        "control_latency_p99_s": quantile(latencies, 0.99),
        "loaders_lost": kinds["loader_lost"],
        "bad_samples": kinds["bad_sample"],
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
    changes = []
    for entry in read_entries(run.log, limit=LOG_LINES, without=QUIET):
        time = datetime.fromtimestamp(entry.time).strftime("%Y-%m-%d %H:%M:%S")
        words = describe_entry({"kind": entry.kind, "value": entry.value})
        changes.append((time, entry.author, words, entry.window, entry.step, entry.reason))
    if changes:
        columns = ("time", "author", "what", "window", "step", "why")
        sections.append(Section(title="Who changed what", columns=columns, rows=changes))
    return sections


def _curve(run: RunDir, config: RunConfig) -> Path | None:
    """Draw the effective size; None for a policy without one, or an adaptive schedule."""
    lines = run.metric_lines(tail=1)
    sized = [entry for entry in read_entries(run.log) if entry.effective_size is not None]
    # A policy that draws uniformly has no finite temperature at any time: its curve would be a flat line.
    steered = any(entry.temperature is not None and not math.isinf(entry.temperature) for entry in sized)
    # An adaptive schedule has no size by progress that the one in force could be compared with.
    if config.curriculum.adaptive or not lines or not steered or sized[0].temperature is None:
        return None
    schedule, train = config.curriculum.schedule_by_progress(), config.train
    knob = knob_history(
        run,
        initial=(sized[0].effective_size or schedule(0.0), sized[0].temperature),
        window_steps=train.window_steps,
        total_steps=lines[0]["step"],
    )
    path = run.report / "effective_size.png"
    scheduled = [schedule(min(1.0, step / train.total_steps)) for step in knob.steps]
    plots.effective_size(
        path, steps=knob.steps, used=knob.effective_size, scheduled=scheduled, temperature=knob.temperature
    )
    return path
