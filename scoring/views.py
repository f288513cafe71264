"""Views: what people ask of a live selection, as plain JSON values. Each is a function of the selection, found by name.

Figures are of the law that is in force now, and nothing changes while one looks; a table is read a segment at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scoring.inspect import export_table, score_summary, table_summary
from scoring.records import Control
from scoring.table.scores import SCORE_KINDS

if TYPE_CHECKING:
    from scoring.draw.drawing import Weighed
    from scoring.selection import Selection
    from scoring.table.samples import SampleTable

TOP_BY = ("probability", "times_drawn", "score")
Columns = dict[str, NDArray[Any]]


def top_samples(selection: Selection, *, by: str = "probability", k: int = 24) -> dict[str, Any]:
    """The k samples with the most of something, the most first, at ties the lower id.

    Args:
        selection: what to look at.
        by: one of TOP_BY; "score" takes the kind that most samples have.
        k: how many, 1 or more.

    Returns:
        "samples": as of `sample_facts`; fewer where fewer were scored.

    Raises:
        ValueError: for another `by`, or a `k` below 1.
    """
    if by not in TOP_BY or k < 1:
        raise ValueError(f"by must be one of {', '.join(TOP_BY)}, and k 1 or more; got {by!r}, {k}.")
    rows: list[dict[str, Any]] = selection.with_weights(lambda table, weighed: _top(table, weighed, by, k))
    return {"samples": rows}


def sample_facts(selection: Selection, *, ids: Sequence[int]) -> dict[str, Any]:
    """What is known of some samples, in the order asked for.

    Returns:
        "samples": sample_id, probability, times_drawn, distance and score (None without).

    Raises:
        ValueError: if there is no such sample.
    """
    wrong = [number for number in ids if not 0 <= number < selection.num_samples]
    if wrong:
        raise ValueError(f"sample ids must be in 0..{selection.num_samples - 1}; got {wrong[0]}.")
    rows: list[dict[str, Any]] = selection.with_weights(lambda table, weighed: _facts_of(table, weighed, list(ids)))
    return {"samples": rows}


def distribution(selection: Selection, *, bins: int = 64) -> dict[str, Any]:
    """How the distances lie, and where the next draw falls among them.

    Args:
        selection: what to look at.
        bins: equal parts of the range of distances, 1 or more.

    Returns:
        "edges" [bins + 1], "count" [bins] of samples, "sampled_mass" [bins] of probability, summing to 1; all empty for
        a run without distances. "effective_size", "temperature" (None for infinity), "policy".
    """
    result: dict[str, Any] = selection.with_weights(lambda table, weighed: _distribution(table, weighed, bins))
    return result


def scores(selection: Selection) -> dict[str, Any]:
    """Quantiles of each kind of score: "kinds" as of `scoring.inspect.score_summary`, and "num_samples"."""
    kinds = selection.with_weights(lambda table, weighed: score_summary(table))
    return {"kinds": kinds, "num_samples": selection.num_samples}


def forecast(selection: Selection, *, kind: str, value: float | str | None) -> dict[str, Any]:
    """What a control would put in force, without making it.

    Args:
        selection: what to ask.
        kind: effective_size, temperature, policy or release.
        value: as of the control.

    Returns:
        "policy", "temperature" (None for infinity), "effective_size" (None where only the weights tell).

    Raises:
        ValueError: naming what is wrong with the control.
    """
    law = selection.outcome(Control(kind=kind, value=value, author="forecast"))
    temperature = law.temperature if math.isfinite(law.temperature) else None
    return {"policy": law.plan.name, "temperature": temperature, "effective_size": law.effective_size}


def _export(selection: Selection, *, path: str) -> dict[str, Any]:
    return {"rows": export_table(selection, Path(path))}


VIEWS: dict[str, Callable[..., dict[str, Any]]] = {
    "summary": table_summary,
    "export": _export,
    "top": top_samples,
    "samples": sample_facts,
    "distribution": distribution,
    "forecast": forecast,
    "scores": scores,
}
"""By name, for callers in other processes."""


def _segments(table: SampleTable, weighed: Weighed) -> Iterator[tuple[int, Columns]]:
    """(id of the first, columns with probability and one score) of each segment."""
    kind = _score_kind(table)
    for first, probability in weighed.weights.probabilities():
        columns = table.rows(first, first + len(probability))
        missing = np.full(len(probability), np.nan, np.float32)
        yield (
            first,
            {
                "probability": probability,
                "times_drawn": columns["times_drawn"],
                "distance": columns.get("distance", missing),
                "score": columns.get(f"score_{kind}", missing),
            },
        )


def _score_kind(table: SampleTable) -> str:
    """The kind of score that most samples have; the first of all kinds where there are none."""
    scored = table.scored()
    return max(SCORE_KINDS, key=lambda kind: scored.get(kind, 0))


def _top(table: SampleTable, weighed: Weighed, by: str, k: int) -> list[dict[str, Any]]:
    best: list[dict[str, Any]] = []
    for first, columns in _segments(table, weighed):
        rows = _largest(columns[by].astype(np.float64), k)
        best += [_row(columns, int(row), int(first + row)) for row in rows]
        best = sorted(best, key=lambda sample: (-sample[by], sample["sample_id"]))[:k]
    return best


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Rows of the `count` largest values that are numbers, the largest first, at ties the first."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known) > count:
        border = np.partition(values[known], len(known) - count)[len(known) - count]
        known = known[values[known] >= border]
    return known[np.lexsort((known, -values[known]))][:count]


def _facts_of(table: SampleTable, weighed: Weighed, ids: list[int]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for first, columns in _segments(table, weighed):
        here = (number for number in ids if first <= number < first + len(columns["probability"]))
        found |= {number: _row(columns, number - first, number) for number in here}
    return [found[number] for number in ids]


def _row(columns: Columns, row: int, sample_id: int) -> dict[str, Any]:
    plain = {name: column[row].item() for name, column in columns.items()}
    known = {n: None if isinstance(v, float) and math.isnan(v) else v for n, v in plain.items()}
    return {"sample_id": sample_id, **known}


def _distribution(table: SampleTable, weighed: Weighed, bins: int) -> dict[str, Any]:
    temperature = weighed.law.temperature
    law = {
        "policy": weighed.law.policy,
        "temperature": temperature if math.isfinite(temperature) else None,
        "effective_size": weighed.effective_size,
    }
    if not table.has_distances:
        return {"edges": [], "count": [], "sampled_mass": [], **law}
    spans = [span for span in table.each(lambda part: part.distance_range()) if span is not None]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    count, mass = np.zeros(bins, np.int64), np.zeros(bins)
    for _, columns in _segments(table, weighed):
        place = np.clip(np.searchsorted(edges, columns["distance"], side="right") - 1, 0, bins - 1)
        count += np.bincount(place, minlength=bins)
        mass += np.bincount(place, weights=columns["probability"], minlength=bins)
    return {"edges": edges.tolist(), "count": count.tolist(), "sampled_mass": mass.tolist(), **law}
