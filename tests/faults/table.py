"""Turns the records of tests/faults into a table in Markdown: `python -m tests.faults.table RECORDS.jsonl`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def markdown(records: Iterable[Mapping[str, Any]]) -> str:
    """One line a row; of a test that ran several times the last record counts."""
    last = {(record["row"], record["test"]): record for record in records}
    rows = ["| fault | injected | p50 s | p95 s | goal | seen |", "|---|---|---|---|---|---|"]
    for record in sorted(last.values(), key=lambda record: record["row"]):
        times = record["recovery_s"]
        p50, p95 = (f"{np.quantile(times, share):.2f}" if times else "-" for share in (0.5, 0.95))
        count = len(times) or 1
        rows.append(f"| {record['row']} | {count} | {p50} | {p95} | {record['goal'] or '-'} | {record['seen']} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown(map(json.loads, Path(sys.argv[1]).read_text().splitlines())))
