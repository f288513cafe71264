"""The Grafana dashboard of a run, made from the table of metrics: a panel names metrics, units follow from the names.

Import the JSON unchanged: it has a variable for the Prometheus data source and one for the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.observe.metrics import BY_NAME

WIDTH = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${source}"}
UNITS = {"seconds": "s", "ratio": "percentunit", "second": "short", "steps": "locale", "samples": "locale"}
"""Grafana's unit by the last word of a name, `_total` aside."""
RATE = "5m"
METRIC = re.compile(r"\$(tempera_\w+)")
"""A metric in a panel's expression; `$name` becomes `name{run="$run"}`, the run that the dashboard's user chose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel: a title and the expressions in it."""

    title: str
    lines: dict[str, str]
    """Legend -> expression."""
    width: int = 8
    """Columns of Grafana's 24."""
    single: bool = False
    """A number instead of lines over time."""


PANELS = (
    Panel(title="Progress", lines={"done": "$tempera_progress_steps / $tempera_planned_steps"}, width=4, single=True),
    Panel(title="Time left", lines={"": "$tempera_remaining_seconds"}, width=4, single=True),
    Panel(title="Images per second", lines={"": "$tempera_throughput_images_per_second"}, width=4, single=True),
    Panel(title="Waiting for data", lines={"": "$tempera_data_wait_ratio"}, width=4, single=True),
    Panel(title="Loss", lines={"": "$tempera_loss"}, width=4, single=True),
    Panel(title="Held by hand", lines={"": "$tempera_held_by_hand"}, width=4, single=True),
    Panel(
        title="Effective dataset size",
        lines={"in force": "$tempera_effective_size_ratio", "schedule": "$tempera_scheduled_effective_size_ratio"},
        width=12,
    ),
    Panel(title="Temperature", lines={"temperature": "$tempera_softmax_temperature"}, width=12),
    Panel(title="Images per second", lines={"trainers": "$tempera_throughput_images_per_second"}),
    Panel(title="Share of time that trainers wait for data", lines={"wait": "$tempera_data_wait_ratio"}),
    Panel(title="Loss", lines={"loss": "$tempera_loss"}),
    Panel(title="Loaders", lines={"desired": "$tempera_desired_loaders", "ready": "$tempera_ready_loaders"}),
    Panel(title="Images per second by loader", lines={"{{loader}}": f"rate($tempera_loader_images_total[{RATE}])"}),
    Panel(title="Images per second while a loader works", lines={"{{loader}}": "$tempera_loader_images_per_second"}),
    Panel(title="Cache hits by loader", lines={"{{loader}}": "$tempera_loader_cache_hit_ratio"}),
    Panel(title="Loader restarts in 10 min", lines={"{{loader}}": "increase($tempera_loader_restarts_total[10m])"}),
    Panel(
        title="Control latency",
        lines={"{{percentile}}": "$tempera_control_latency_seconds", "changes": "$tempera_control_changes_total"},
    ),
    Panel(
        title="Steps drawn ahead",
        lines={"drawn ahead": "$tempera_drawn_ahead_steps", "bound": "$tempera_control_bound_steps"},
    ),
    Panel(
        title="Bad samples, share of draws",
        lines={"bad": f"increase($tempera_bad_samples_total[{RATE}]) / increase($tempera_drawn_samples_total[{RATE}])"},
    ),
    Panel(title="Samples with a score", lines={"{{kind}}": "$tempera_scored_samples"}),
    Panel(title="Samples never drawn", lines={"never": "$tempera_never_drawn_samples / $tempera_dataset_samples"}),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as the object that Grafana imports."""
    variables = [
        {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": "label_values(tempera_progress_steps, run)", "refId": "runs"},
            "refresh": 2,  # look for runs again whenever the time range changes
            "sort": 1,
        },
    ]
    return {
        "uid": "tempera-run",
        "title": "Tempera run",
        "tags": ["tempera"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": list(_laid_out(PANELS)),
    }


def _laid_out(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    """Yield the panels side by side, row after row, in the order of the table."""
    x = y = row_height = 0
    for number, panel in enumerate(panels, start=1):
        height = HEIGHT // 2 if panel.single else HEIGHT
        if x + panel.width > WIDTH:  # it does not fit beside the last one
            x, y = 0, y + row_height
        row_height = height  # panels of one row are of one height
        yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height})
        x += panel.width


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """Return a panel as Grafana's JSON; its description and its unit come from the table of metrics."""
    texts = list(panel.lines.values())
    names = [name for text in texts for name in METRIC.findall(text)]
    targets = [
        {
            "refId": chr(ord("A") + position),
            "datasource": SOURCE,
            "expr": METRIC.sub(r'\1{run="$run"}', text),
            "legendFormat": legend,
        }
        for position, (legend, text) in enumerate(panel.lines.items())
    ]
    # A quotient of two metrics is a share, whatever their units; otherwise the first metric's name ends in its unit.
    last_word = names[0].removesuffix("_total").rpartition("_")[2]
    unit = "percentunit" if any("/" in text for text in texts) else UNITS.get(last_word, "short")
    return {
        "id": number,
        "type": "stat" if panel.single else "timeseries",
        "title": panel.title,
        "description": " ".join(dict.fromkeys(BY_NAME[name].help for name in names)),
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": targets,
    }
