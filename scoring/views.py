"""Views: figures of the table and the weights now in force, as plain JSON values; VIEWS finds each by name.

A view is a function of (table, weights) and its arguments. The selection calls it with its table lock held, so nothing
changes while it reads. A table is read a segment at a time, so that a large one is never held twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scoring.policies import SCORE_KINDS
from scoring.table.draw_counts import draw_summary
from scoring.table.samples import SampleTable
from scoring.table.weights import WeightTable

Columns = dict[str, NDArray[Any]]

TOP_BY = ("probability", "times_drawn", "score")
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def summary(table: SampleTable, weights: WeightTable, *, top: int = 10) -> dict[str, Any]:
    """Summarise the table.

    Args:
        table: the samples.
        weights: what they are drawn by.
        top: how many of the samples with the highest probability to list, 1 or more.

    Returns:
        "in_force" (policy, temperature, effective_size), "effective_sample_size" (1 / sum p^2), "entropy" (nats), "top"
        (sample_id, probability, times_drawn, distance, scores), "times_drawn" (summary and "histogram": samples by
        number of draws), "scores" (by kind: scored, quantiles), "bytes_per_sample".

    Raises:
        ValueError: if `top` is not positive.
    """
    if top < 1:
        raise ValueError(f"top must be 1 or more; got {top}.")
    squares = entropy = 0.0
    best: list[tuple[float, int]] = []
    for first, probability in weights.probabilities():
        squares += float(probability @ probability)
        positive = probability[probability > 0.0]  # 0 log 0 is 0 in an entropy, and NaN in numpy
        entropy -= float(positive @ np.log(positive))
        rows = _largest(probability, top)
        best = sorted([*best, *((-float(probability[row]), int(first + row)) for row in rows)])[:top]
    listed = []
    for negative, sample_id in best:
        facts = _facts(table.rows(sample_id, sample_id + 1), 0, sample_id)
        listed.append({"sample_id": sample_id, "probability": -negative, **facts})
    histogram = table.counts.histogram
    return {
        "in_force": _in_force(weights),
        "num_samples": table.num_samples,
        "effective_sample_size": 1.0 / squares,
        "entropy": entropy,
        "top": listed,
        "times_drawn": {**draw_summary(histogram), "histogram": histogram.tolist()},
        "scores": scores(table, weights)["kinds"],
        "bytes_per_sample": (table.nbytes + weights.nbytes) / table.num_samples,
    }


def scores(table: SampleTable, weights: WeightTable) -> dict[str, Any]:
    """Count and summarise the scores that were reported.

    Returns:
        "kinds": by kind of score, how many samples are "scored" and their "quantiles", by share as text ("0.5" is the
        median). "num_samples".
    """
    kinds: dict[str, Any] = {}
    for kind, scored in table.scored().items():
        values = table.scores(kind)
        quantiles = np.quantile(values[~np.isnan(values)], QUANTILES).tolist()
        kinds[kind] = {"scored": scored, "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True))}
    return {"kinds": kinds, "num_samples": table.num_samples}


def top_samples(table: SampleTable, weights: WeightTable, *, by: str = "probability", k: int = 24) -> dict[str, Any]:
    """List the k samples with the highest value, in falling order, at ties the lower id.

    Args:
        table: the samples.
        weights: what they are drawn by.
        by: one of TOP_BY; "score" takes the kind that most samples have.
        k: how many, 1 or more.

    Returns:
        "samples": facts as `sample_facts` gives them; fewer where fewer were scored.

    Raises:
        ValueError: for another `by`, or a `k` below 1.
    """
    if by not in TOP_BY or k < 1:
        raise ValueError(f"by must be one of {', '.join(TOP_BY)}, and k 1 or more; got {by!r}, {k}.")
    best: list[dict[str, Any]] = []
    for first, columns in _segments(table, weights):
        best += [_facts(columns, int(row), int(first + row)) for row in _largest(columns[by].astype(np.float64), k)]
        best = sorted(best, key=lambda sample: (-sample[by], sample["sample_id"]))[:k]
    return {"samples": best}


def sample_facts(table: SampleTable, weights: WeightTable, *, ids: Sequence[int]) -> dict[str, Any]:
    """Return the facts of some samples, in the order asked for.

    Returns:
        "samples": sample_id, probability, times_drawn, distance and score (None without).

    Raises:
        ValueError: if there is no such sample.
    """
    wrong = [number for number in ids if not 0 <= number < table.num_samples]
    if wrong:
        raise ValueError(f"sample ids must be in 0..{table.num_samples - 1}; got {wrong[0]}.")
    found: dict[int, dict[str, Any]] = {}
    for first, columns in _segments(table, weights):
        here = (number for number in ids if first <= number < first + len(columns["probability"]))
        found |= {number: _facts(columns, number - first, number) for number in here}
    return {"samples": [found[number] for number in ids]}


def distribution(table: SampleTable, weights: WeightTable, *, bins: int = 64) -> dict[str, Any]:
    """Return how the distances lie, and how the next draw falls among them.

    Args:
        table: the samples.
        weights: what they are drawn by.
        bins: equal parts of the range of distances, 1 or more.

    Returns:
        "edges" [bins + 1], "count" [bins] of samples, "sampled_mass" [bins] of probability, summing to 1; all empty for
        a run without distances. "effective_size", "temperature" (None for infinity), "policy".
    """
    if table.distance is None:
        return {"edges": [], "count": [], "sampled_mass": [], **_in_force(weights)}
    low, high = table.distance_range
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    count, mass = np.zeros(bins, np.int64), np.zeros(bins)
    for _, columns in _segments(table, weights):
        place = np.clip(np.searchsorted(edges, columns["distance"], side="right") - 1, 0, bins - 1)
        count += np.bincount(place, minlength=bins)
        mass += np.bincount(place, weights=columns["probability"], minlength=bins)
    lists = {"edges": edges.tolist(), "count": count.tolist(), "sampled_mass": mass.tolist()}
    return {**lists, **_in_force(weights)}


def export(table: SampleTable, weights: WeightTable, *, path: str | Path) -> dict[str, Any]:
    """Write the whole table to Parquet, under another name first and then renamed.

    Columns: sample_id, probability, distance (null without), times_drawn, and for each kind of score that was reported
    the score (null where none was).

    Returns:
        "rows": how many were written.
    """
    target = Path(path)
    aside = target.with_name(f"{target.name}.{os.getpid()}.part")
    kinds = [kind for kind in SCORE_KINDS if kind in table.scored()]

    def batches() -> Iterator[pa.Table]:
        for first, probability in weights.probabilities():
            last = first + len(probability)
            columns, missing = table.rows(first, last), np.full(last - first, np.nan, np.float32)
            named = {
                "sample_id": pa.array(np.arange(first, last)),
                "probability": pa.array(probability),
                "distance": pa.array(columns.get("distance", missing), from_pandas=True),
                "times_drawn": pa.array(columns["times_drawn"]),
            }
            for kind in kinds:  # a column even where this segment has no score of the kind
                named[f"score_{kind}"] = pa.array(columns.get(f"score_{kind}", missing), from_pandas=True)
            yield pa.table(named)

    try:
        writer: pq.ParquetWriter | None = None
        for batch in batches():
            writer = writer or pq.ParquetWriter(aside, batch.schema)
            writer.write_table(batch)
        assert writer is not None, "a table has at least one sample"
        writer.close()
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return {"rows": table.num_samples}


VIEWS: dict[str, Callable[..., dict[str, Any]]] = {
    "summary": summary,
    "export": export,
    "top": top_samples,
    "samples": sample_facts,
    "distribution": distribution,
    "scores": scores,
}
"""Views by name; `export` takes a path on the machine of the selection."""


def _in_force(weights: WeightTable) -> dict[str, Any]:
    temperature = weights.key.temperature
    return {
        "policy": weights.key.policy,
        "temperature": temperature if math.isfinite(temperature) else None,
        "effective_size": weights.effective_size,
    }


def _segments(table: SampleTable, weights: WeightTable) -> Iterator[tuple[int, Columns]]:
    """Yield (id of the first sample, columns with probability and one score) of each segment.

    The score is of the kind that most samples have; of the first kind where there are none.
    """
    scored = table.scored()
    kind = max(SCORE_KINDS, key=lambda kind: scored.get(kind, 0))
    for first, probability in weights.probabilities():
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


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the rows of the `count` largest values that are numbers, in falling order, at ties the first."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known) > count:  # a partition first: sorting half a million values to keep ten is slow
        cutoff = np.partition(values[known], len(known) - count)[len(known) - count]
        known = known[values[known] >= cutoff]
    return known[np.lexsort((known, -values[known]))][:count]


def _facts(columns: Columns, row: int, sample_id: int) -> dict[str, Any]:
    """Return the columns of one row as plain values by name; None for NaN, which JSON has not."""
    plain = {name: column[row].item() for name, column in columns.items()}
    known = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in plain.items()}
    return {"sample_id": sample_id, **known}
