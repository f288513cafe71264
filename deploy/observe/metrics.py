"""The metrics of a run: one table of names, units and meanings, read from the answer of /api/v1/state.

`/metrics`, Ray's exporter, the Grafana dashboard and the alert rules all take their names from here. Every metric has
the label `run`; units are in the names, shares are ratios in [0, 1], a counter's name ends with `_total`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

State = Mapping[str, Any]
"""The answer of GET /api/v1/state."""
Value = float | int | bool | None
"""None is a value that is not known yet; it is not exported."""


class Reading(NamedTuple):
    """One finite value of one metric, labelled with `run` and with the metric's own label if it has one."""

    metric: Metric
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric: one value of a run, or one for each value of a label."""

    name: str
    """Begins with tempera_, unit included."""
    help: str
    read: Callable[[State], Value | Mapping[str, Value]]
    """A value; or, with a label, values by that label."""
    kind: Literal["gauge", "counter"] = "gauge"
    """Counters only grow while a run's process lives."""
    label: str = ""
    """The second label, if there is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        return ("run", self.label) if self.label else ("run",)


def readings(state: State) -> Iterator[Reading]:
    """Yield the finite values of every metric, in the table's order."""
    run = str(state["run"]["name"])
    for metric in METRICS:
        found = metric.read(state)
        values = found if isinstance(found, Mapping) else {"": found}
        for label, value in values.items():
            # Left out, not zero: a zero would be averaged, and would set off alerts.
            if value is not None and math.isfinite(value):
                labels = {"run": run} | ({metric.label: label} if metric.label else {})
                yield Reading(metric, labels, float(value))


def _at(*path: str) -> Callable[[State], Value]:
    """Return a reader of the value at a path of the state; None where a part of the path or the value is missing."""

    def read(state: State) -> Value:
        found: Any = state
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        value: Value = found if isinstance(found, int | float) else None
        return value

    return read


def _of_loaders(name: str) -> Callable[[State], Mapping[str, Value]]:
    """Return a reader of one value of each loader, by the loader's name."""
    return lambda state: {member["name"]: member.get(name) for member in state["fleet"]["members"]}


def _scheduled(state: State) -> Value:
    """Return the schedule's effective size; None under a policy that follows none.

    Only a policy that follows the schedule has a temperature. Exported for the others, the schedule's value would set
    off the alert on sizes that differ from it.
    """
    if state["selection"]["temperature"] is None:
        return None
    return _at("selection", "scheduled_effective_size")(state)


def _drawn_ahead(state: State) -> Value:
    """Return the steps between the last trained and the last drawn; None before the first of either."""
    step, drawn = _at("progress", "step")(state), _at("control", "next_step")(state)
    if step is None or drawn is None:
        return None
    # The service reads the draw before the step, so the trainer can seem to be ahead for a moment.
    return max(0, drawn - step)


METRICS: tuple[Metric, ...] = (
    Metric(name="tempera_progress_steps", help="Optimizer steps done.", read=_at("progress", "step")),
    Metric(name="tempera_planned_steps", help="Optimizer steps of the run.", read=_at("progress", "total_steps")),
    Metric(name="tempera_remaining_seconds", help="Time left at the present speed.", read=_at("progress", "eta_s")),
    Metric(name="tempera_paused", help="1 while the trainers are paused.", read=_at("paused")),
    Metric(
        name="tempera_throughput_images_per_second",
        help="Images that all trainers together learn from in a second.",
        read=_at("progress", "images_per_s"),
    ),
    Metric(
        name="tempera_data_wait_ratio",
        help="Share of their time that trainers wait for data.",
        read=_at("progress", "data_wait"),
    ),
    Metric(name="tempera_loss", help="Training loss of the last logged step.", read=_at("progress", "loss")),
    Metric(
        name="tempera_effective_size_ratio",
        help="Effective dataset size in force, as a share of the data.",
        read=_at("selection", "effective_size"),
    ),
    Metric(
        name="tempera_scheduled_effective_size_ratio",
        help="Effective dataset size that the schedule asks for.",
        read=_scheduled,
    ),
    Metric(
        name="tempera_softmax_temperature",
        help="Temperature of the sampling weights in force.",
        read=_at("selection", "temperature"),
    ),
    Metric(
        name="tempera_held_by_hand", help="1 while a person holds the effective size.", read=_at("selection", "manual")
    ),
    Metric(
        name="tempera_control_changes_total",
        help="Changes of what is drawn, by people and by selection rounds.",
        read=_at("selection", "control_version"),
        kind="counter",
    ),
    Metric(
        name="tempera_control_latency_seconds",
        help="Time from a change's request to the first batch drawn under it, by percentile.",
        read=lambda state: {"50": state["latency"]["p50_s"], "99": state["latency"]["p99_s"]},
        label="percentile",
    ),
    Metric(
        name="tempera_control_bound_steps",
        help="Most steps between a change's request and the first batch drawn under it.",
        read=_at("control", "bound_steps"),
    ),
    Metric(
        name="tempera_drawn_ahead_steps",
        help="Steps whose samples are drawn but not trained on: the age of the weights in use.",
        read=_drawn_ahead,
    ),
    Metric(name="tempera_dataset_samples", help="Samples of the data set.", read=_at("selection", "num_samples")),
    Metric(
        name="tempera_never_drawn_samples",
        help="Samples that no window has drawn yet.",
        read=_at("selection", "times_drawn", "never"),
    ),
    Metric(
        name="tempera_scored_samples",
        help="Samples that have a score, by kind of score.",
        read=lambda state: state["selection"]["scored"],
        label="kind",
    ),
    Metric(
        name="tempera_drawn_samples_total",
        help="Draws of all windows so far.",
        read=lambda state: round(state["selection"]["times_drawn"]["mean"] * state["selection"]["num_samples"]),
        kind="counter",
    ),
    Metric(
        name="tempera_bad_samples_total",
        help="Draws whose sample failed its checks and was substituted.",
        read=_at("bad_samples"),
        kind="counter",
    ),
    Metric(name="tempera_desired_loaders", help="Desired number of loaders.", read=_at("fleet", "desired")),
    Metric(
        name="tempera_ready_loaders",
        help="Loaders that are ready.",
        read=lambda state: sum(member["state"] == "ready" for member in state["fleet"]["members"]),
    ),
    Metric(
        name="tempera_loader_restarts_total",
        help="Times that a loader was lost and replaced.",
        read=_of_loaders("restarts"),
        kind="counter",
        label="loader",
    ),
    Metric(
        name="tempera_loader_images_total",
        help="Images that a loader has served since it started.",
        read=_of_loaders("images"),
        kind="counter",
        label="loader",
    ),
    Metric(
        name="tempera_loader_images_per_second",
        help="Images a second of a loader while it works.",
        read=_of_loaders("images_per_s"),
        label="loader",
    ),
    Metric(
        name="tempera_loader_cache_hit_ratio",
        help="Share of a loader's images that were found decoded.",
        read=_of_loaders("hit_rate"),
        label="loader",
    ),
)
"""All exported metrics. Readers index what every state has and use `_at` for what may be unknown."""

BY_NAME = {metric.name: metric for metric in METRICS}
