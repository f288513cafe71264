"""Inspect: what a person asks of a selection: who is drawn most, how concentrated the draw is, and the whole table.

Figures are of the law that is in force now. Effective sample size is 1 / sum p^2, entropy is in nats; both are sums
over every sample, in parts, so that a large table is never held twice.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scoring.table.draw_counts import draw_summary
from scoring.table.scores import SCORE_KINDS

if TYPE_CHECKING:
    from scoring.draw.drawing import Weighed
    from scoring.selection import Selection
    from scoring.table.samples import SampleTable

Float64 = NDArray[np.float64]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def table_summary(selection: Selection, *, top: int = 10) -> dict[str, Any]:
    """The table at a glance, as plain JSON values.

    Args:
        selection: what to look at.
        top: how many of the samples with the highest probability to list, 1 or more.

    Returns:
        "law", "effective_sample_size" (1 / sum p^2), "entropy" (nats), "top" (sample_id, probability, times_drawn,
        distance, scores), "times_drawn" (summary and "histogram": samples by number of draws), "scores" (by kind:
        scored, quantiles), "bytes_per_sample".

    Raises:
        ValueError: if `top` is not positive.
    """
    if top < 1:
        raise ValueError(f"top must be 1 or more; got {top}.")
    result: dict[str, Any] = selection.with_weights(lambda table, weighed: _summary(table, weighed, top))
    return result


def export_table(selection: Selection, path: str | Path) -> int:
    """Write the whole table to Parquet, aside first and then renamed.

    Columns: sample_id, probability, distance (null without), times_drawn, and for each kind of score that was reported
    the score (null where none was).

    Returns:
        Rows written.
    """
    rows: int = selection.with_weights(lambda table, weighed: _export(table, weighed, Path(path)))
    return rows


def _summary(table: SampleTable, weighed: Weighed, top: int) -> dict[str, Any]:
    squares = entropy = 0.0
    best: list[tuple[float, int]] = []
    for first, probability in weighed.weights.probabilities():
        squares += float(probability @ probability)
        positive = probability[probability > 0.0]
        entropy -= float(positive @ np.log(positive))
        rows = _largest(probability, top)
        best = heapq.nsmallest(top, [*best, *((-float(probability[row]), int(first + row)) for row in rows)])
    histogram = table.draw_histogram()
    return {
        "law": {
            "policy": weighed.law.policy,
            "temperature": weighed.law.temperature if math.isfinite(weighed.law.temperature) else None,
            "effective_size": weighed.effective_size,
        },
        "num_samples": table.num_samples,
        "effective_sample_size": 1.0 / squares,
        "entropy": entropy,
        "top": [_sample(table, sample_id, -negative) for negative, sample_id in best],
        "times_drawn": {**draw_summary(histogram), "histogram": histogram.tolist()},
        "scores": score_summary(table),
        "bytes_per_sample": table.bytes_kept() / table.num_samples,
    }


def _largest(values: Float64, count: int) -> NDArray[np.int64]:
    """Rows of the `count` largest values, at ties the first."""
    if len(values) <= count:
        return np.arange(len(values))
    border = np.partition(values, len(values) - count)[len(values) - count]
    return np.concatenate([np.flatnonzero(values > border), np.flatnonzero(values == border)[:count]])


def _sample(table: SampleTable, sample_id: int, probability: float) -> dict[str, Any]:
    row = table.rows(sample_id, sample_id + 1)
    plain = {name: _number(column[0]) for name, column in row.items()}
    return {"sample_id": sample_id, "probability": probability, **plain}


def score_summary(table: SampleTable) -> dict[str, Any]:
    """By kind of score: how many are "scored", and their "quantiles"."""
    summary: dict[str, Any] = {}
    for kind, scored in table.scored().items():
        values = table.scores(kind)
        quantiles = np.quantile(values[~np.isnan(values)], QUANTILES)
        summary[kind] = {
            "scored": scored,
            "quantiles": dict(zip(map(str, QUANTILES), map(float, quantiles), strict=True)),
        }
    return summary


def _export(table: SampleTable, weighed: Weighed, target: Path) -> int:
    aside = target.with_name(f"{target.name}.{os.getpid()}.part")
    rows = 0
    try:
        batches = _batches(table, weighed)
        batch = next(batches)
        with pq.ParquetWriter(aside, batch.schema) as writer:
            while batch is not None:
                writer.write_table(batch)
                rows += batch.num_rows
                batch = next(batches, None)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return rows


def _batches(table: SampleTable, weighed: Weighed) -> Iterator[pa.Table]:
    """The table in parts, every kind of score a column even where a part has none."""
    kinds = [kind for kind in SCORE_KINDS if kind in table.scored()]
    for first, probability in weighed.weights.probabilities():
        last = first + len(probability)
        columns, missing = table.rows(first, last), np.full(last - first, np.nan, np.float32)
        named = {
            "sample_id": pa.array(np.arange(first, last)),
            "probability": pa.array(probability),
            "distance": pa.array(columns.get("distance", missing), from_pandas=True),
            "times_drawn": pa.array(columns["times_drawn"]),
        }
        named |= {f"score_{kind}": pa.array(columns.get(f"score_{kind}", missing), from_pandas=True) for kind in kinds}
        yield pa.table(named)


def _number(value: Any) -> float | int | None:
    """A plain number; None for NaN."""
    plain = value.item()
    return None if isinstance(plain, float) and math.isnan(plain) else plain
