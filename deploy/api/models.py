"""What reading takes and answers: parameters of paths and queries, and the answer of each GET.

The OpenAPI document describes each answer from its class; `changes` has the bodies and replies of changes.

Answers keep fields that are not described here, so that a newer part of a run is never hidden; a test says that there
are none. Sizes are shares of the data in (0, 1], times are seconds (`time`: since the epoch), steps are optimizer
steps.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

SampleId = Annotated[int, Path(ge=0, lt=2**63)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most entries to return.")]
Top = Annotated[int, Query(ge=1, le=200, description="Most samples to return.")]
Side = Annotated[int, Query(ge=16, le=512, description="Width and height in pixels.")]
TopBy = Literal["probability", "times_drawn", "score", "prototypes"]


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorResponse(Answer):
    error: str = Field(description="One line.")


class LogEntry(Answer):
    sequence: int = Field(description="Position in the log, from 1.")
    time: float = Field(description="Seconds since the epoch.")
    author: str = Field(description="Who did it; 'trainer' for the schedule.")
    kind: str = Field(description="Kind of the control or event.")
    value: float | str | None = Field(description="The value that was set.")
    reason: str = Field(description="Why, or the event's message.")
    window: int = Field(description="First window under it; for an event the next window at that time.")
    step: int = Field(description="First step of that window.")
    version: int = Field(description="Control version after it.")
    temperature: float | None = Field(description="In force from that window on; null for an event or uniform draws.")
    effective_size: float | None = Field(description="In force from that window on; null for an event.")
    in_force: bool = Field(description="False for a scheduled value recorded while a person's value holds.")
    request: str = Field("", description="The `request` of the control.")
    detail: str = Field("", description="JSON: the cutoff of a round, or the file of distances.")


class ConflictResponse(ErrorResponse):
    """A change that came too late, or that the run cannot make in its present state."""

    version: int | None = Field(None, description="The control version now.")
    winner: LogEntry | None = Field(None, description="The change that came first.")


class RunFacts(Answer):
    name: str = Field(description="Name of the run.")
    run_dir: str = Field(description="Its directory.")
    method: str = Field(description="Training method.")
    started: float = Field(description="When this process began to serve it, in seconds since the epoch.")
    status: Literal["running", "paused", "stopping", "over"] = Field(description="What it does now.")


class Progress(Answer):
    """How far training is; null where not known yet."""

    step: int = Field(description="Steps done.")
    total_steps: int = Field(description="Steps of the run.")
    eta_s: float | None = Field(description="Seconds left at the present speed.")
    images_per_s: float | None = Field(description="Images a second, all trainers together.")
    data_wait: float | None = Field(description="Share of their time that trainers wait for data, in [0, 1].")
    loss: float | None = Field(description="Loss of the last logged step.")


class DrawCounts(Answer):
    quantiles: list[float] = Field(description="Least, first quarter, median, third quarter, most.")
    mean: float = Field(description="Mean number of draws.")
    never: int = Field(description="Samples not drawn yet.")
    histogram: list[int] = Field([], description="Number of samples that were drawn 0, 1, 2, ... times.")


class InForce(Answer):
    """What decides the draws: now, or after a change that is only asked about."""

    policy: str = Field(description="Sampling policy.")
    temperature: float | None = Field(description="Temperature; null where draws are uniform.")
    effective_size: float | None = Field(description="Effective size; null where only the weights tell.")


class SelectionState(InForce):
    scheduled_effective_size: float | None = Field(description="What the schedule asks for.")
    manual: bool = Field(description="Whether a person's value holds.")
    manual_kind: str | None = Field(description="What a person has set: effective_size or temperature.")
    control_version: int = Field(description="Number of changes so far.")
    version: int = Field(description="Version of the weight table of the newest window.")
    next_window: int = Field(description="First window that is not drawn yet.")
    next_step: int = Field(description="First step of that window.")
    num_samples: int = Field(description="Samples of the data set.")
    scored: dict[str, int] = Field(description="Samples with a score, by kind of score.")
    times_drawn: DrawCounts = Field(description="Draws of all windows so far.")
    pid: int = Field(0, description="Process of the selection service, under Ray.")
    node: str = Field("", description="Its Ray node.")


class Loader(Answer):
    name: str = Field(description="Its name in the fleet.")
    state: str | None = Field(description="ready, or what it does instead.")
    node: str | None = Field(description="Node or host.")
    pid: int | None = Field(description="Process.")
    images: int | None = Field(description="Images served since it started.")
    images_per_s: float | None = Field(description="Images a second while it works.")
    restarts: int | None = Field(description="Times that it was lost and replaced.")
    reason: str | None = Field(description="Why it was last replaced.")
    hit_rate: float | None = Field(description="Share of its images found decoded, in [0, 1].")


class Loaders(Answer):
    desired: int = Field(description="Desired number of loaders.")
    author: str = Field(description="Who asked for it.")
    reason: str = Field(description="Why.")
    members: list[Loader] = Field(description="The loaders.")
    scalable: bool = Field(description="Whether their number can be changed.")


class ControlState(Answer):
    """Where a change lands if it is made now."""

    version: int = Field(description="Control version, the `expected_version` of a change.")
    next_window: int = Field(description="First window under it.")
    next_step: int = Field(description="First step of that window.")
    window_steps: int = Field(description="Steps of a window.")
    bound_steps: int = Field(description="Most steps from a request to the first batch drawn under it.")
    bound_s: float | None = Field(description="The same in seconds at the present speed.")
    policies: dict[str, bool] = Field(description="Each policy that can be set, and whether it has a temperature.")


class Latency(Answer):
    """Measured control latency: from a request to the first batch drawn under it; null before the first."""

    count: int = Field(description="Changes measured.")
    p50_s: float | None = Field(description="Median, in seconds.")
    p99_s: float | None = Field(description="99th percentile, in seconds.")
    last_s: float | None = Field(description="The last one, in seconds.")


class State(Answer):
    run: RunFacts = Field(description="Which run.")
    progress: Progress = Field(description="How far it is.")
    selection: SelectionState = Field(description="What is in force.")
    fleet: Loaders = Field(description="The loaders.")
    control: ControlState = Field(description="Where a change lands.")
    latency: Latency = Field(description="How long changes took.")
    bad_samples: int = Field(description="Draws that met a bad sample and were given a spare.")
    paused: bool = Field(description="The trainers are paused.")
    pausing: bool = Field(description="They were asked to pause.")
    read_only: bool = Field(description="The run is over.")
    time: float = Field(description="When this was read, in seconds since the epoch.")


class MetricRows(Answer):
    rows: list[dict[str, Any]] = Field(description="Lines of metrics.jsonl, evenly chosen; the newest is always there.")
    total: int = Field(description="Lines of the file.")


class Curve(Answer):
    past: list[tuple[int, float | None, float | None]] = Field(description="[step, effective size, temperature].")
    scheduled: list[tuple[int, float]] = Field(description="[step, effective size] of the schedule.")
    manual: bool = Field(description="Whether a person's value holds.")
    window_steps: int = Field(description="Steps of a window.")


class Distribution(InForce):
    """Histogram of the distances; empty lists for a run without distances."""

    edges: list[float] = Field(description="Edges of the bins, one more than bins.")
    count: list[int] = Field(description="Samples in each bin.")
    sampled_mass: list[float] = Field(description="Probability that the next draw falls into each bin; sums to 1.")


class Sample(Answer):
    """One sample: what is drawn of it, and what the index and the prototypes say of it."""

    sample_id: int = Field(description="Row of the index, from 0.")
    probability: float = Field(description="Probability of one draw, in [0, 1].")
    times_drawn: int = Field(description="Draws so far.")
    distance: float | None = Field(description="Distance to the nearest prototype, in [0, 1].")
    key: str = Field(description="Name in its shard.")
    label: str | None = Field(description="Class name, or its number.")
    cluster: int | None = Field(description="Cluster of the prototypes.")
    score: float | None = Field(description="Score of the kind that most samples have.")


class TopSamples(Answer):
    by: TopBy = Field(description="The order; prototypes: the sample nearest to its centroid, largest clusters first.")
    samples: list[Sample] = Field(description="The samples.")


class ScoreKind(Answer):
    scored: int = Field(description="Samples with a score.")
    quantiles: dict[str, float] = Field(description="Value by quantile, as '0.5'.")


class Round(Answer):
    kind: float | str | None = Field(description="Kind of score that it selected by.")
    step: int = Field(description="First step under it.")
    window: int = Field(description="First window under it.")
    time: float = Field(description="When, in seconds since the epoch.")
    kept: int | None = Field(description="Samples that it kept.")
    threshold: float | None = Field(description="Least score among them.")


class Scores(Answer):
    kinds: dict[str, ScoreKind] = Field(description="By kind of score.")
    num_samples: int = Field(description="Samples of the data set.")
    rounds: list[Round] = Field(description="In order.")


class Summary(Answer):
    in_force: InForce = Field(description="What the samples are drawn by.")
    num_samples: int = Field(description="Samples of the data set.")
    effective_sample_size: float = Field(description="1 / sum p^2, in samples.")
    entropy: float = Field(description="Entropy of a draw, in nats.")
    top: list[dict[str, Any]] = Field(description="The most probable samples, with their columns of the table.")
    times_drawn: DrawCounts = Field(description="Draws so far.")
    scores: dict[str, ScoreKind] = Field(description="By kind of score.")
    bytes_per_sample: float = Field(description="Memory of the table.")


class LogPage(Answer):
    """Entries of the run's log, oldest first."""

    entries: list[LogEntry] = Field(description="The newest, or those before an entry.")
    more: bool = Field(description="Whether there are older ones.")


class BadSample(Answer):
    sample_id: int | None = Field(description="Row of the index.")
    reason: str = Field(description="Why, the last time.")
    times: int = Field(description="Draws that met it.")
    step: int = Field(description="Step of the last one.")
    time: float = Field(description="When, in seconds since the epoch.")


class BadSamples(Answer):
    """The bad samples, the last first."""

    total: int = Field(description="Draws that met one.")
    samples: list[BadSample] = Field(description="The last ones.")
