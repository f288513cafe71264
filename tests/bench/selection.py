"""How fast the selection draws, weighs, solves and takes scores, and its memory: `python -m tests.bench.selection`.

Every table is measured whole, in one process; a size that this machine's memory cannot hold is left out, and the report
says so. Times are medians, with the best of the repeats beside them: on a shared machine the best is nearer to what the
code costs.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.config import SelectionConfig
from scoring.draw import random_uniforms
from scoring.log.runlog import RunLog
from scoring.log.snapshots import Position, SnapshotStore
from scoring.policies import parse_policy
from scoring.selection import Selection
from scoring.table.samples import SampleTable
from scoring.table.scores import ScoreReport
from scoring.table.weights import WeightKey
from tests.bench.command import run, say
from tests.bench.selection_actors import bench_window_requests

SIZES = (1_280_000, 100_000_000, 1_000_000_000)
PEAK_BYTES = 19
"""Bytes a sample that the benchmark needs at most: recovery holds 14 and, while a snapshot is taken over, 4 more."""
START = Position(next_window=0, scores_through=0, rounds_through=0)
DRAWS = 65_536
CONFIG = SelectionConfig(seed=1, global_batch=4096, window_steps=16)
REPEATS = 7
SERVICE_SIZE = 1_280_000
REPORT_SCORES = 4096
WRITERS = 8
TRAINERS = 256
SCORES_S = 3.0
"""Seconds for which scores are pushed, once as fast as they are taken and once at PACED_RATE."""
PACED_RATE = 500_000
"""Scores per second at which the latency of an acknowledgement is measured."""
WINDOW_EVERY_S = 0.5
"""Pause between windows meanwhile; 16 steps of a real trainer take longer."""


@dataclass(kw_only=True, slots=True)
class Timings:
    """Durations of one operation."""

    seconds: list[float] = field(default_factory=list)
    """One a repeat."""

    def measure(self, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Time one run of it."""
        start = time.perf_counter()
        result = act(*arguments, **named)
        self.seconds.append(time.perf_counter() - start)
        return result

    def quantile_ms(self, share: float) -> float:
        """Milliseconds that this share of the runs stays below."""
        return round(float(np.quantile(self.seconds, share)) * 1e3, 3)

    median_ms = property(lambda self: self.quantile_ms(0.5))
    best_ms = property(lambda self: self.quantile_ms(0.0))


def selection(*, trainers: bool = True, sizes: tuple[int, ...] = SIZES, seconds: float = SCORES_S) -> dict[str, Any]:
    """Measure drawing, re-weighing, solving and scores by number of samples, and 256 trainers that ask under Ray.

    Returns by table size ("by_n") draw_window_ms, reweigh_ms, solve_ms, snapshot_ms, recover_ms from that snapshot and
    resident_bytes_per_sample, None for a size that does not fit into memory; "scores_per_s" (at most), "ack_p99_ms" (at
    PACED_RATE), "window_durable_ms" (with its commit), "window_p99_ms_256_threads" (of the selection's own process),
    "recover_ms" (from a snapshot), "recover_log_only_ms" (every score again).

    Args:
        trainers: start Ray and measure the trainers' requests too.
        sizes: table sizes.
        seconds: how long scores are pushed.
    """
    report: dict[str, Any] = {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0], "draws": DRAWS, "by_n": {}}
    for size in sizes:
        say(f"table of {size:,} samples")
        report["by_n"][str(size)] = bench_table(size) if size * PEAK_BYTES < _available_bytes() else None
    say("service")
    report |= bench_service(seconds=seconds)
    return report | (bench_window_requests() if trainers else {})


def bench_table(num_samples: int) -> dict[str, Any]:
    """Draw, weigh and solve on a table with distances, scores and draw counts for every sample; save it, recover it."""
    distance = np.random.default_rng(0).random(num_samples, dtype=np.float32)
    table = SampleTable(distance, num_samples=num_samples)
    for report in _full_reports(num_samples):
        table.score_table(report.kind).merge(report)
    profile, plan, uniforms = table.profile(), parse_policy("prototypical"), random_uniforms(1, 0, DRAWS)
    assert profile is not None, "this table has distances"
    draw, reweigh, solve = Timings(), Timings(), Timings()
    for repeat in range(REPEATS):
        temperature = solve.measure(profile.solve, 0.2 + repeat / 50)
        weights = reweigh.measure(table.weigh, WeightKey(policy=plan.name, temperature=temperature), plan)
        ids, _ = draw.measure(weights.draw, uniforms)
        table.counts.add(ids)
    with tempfile.TemporaryDirectory() as directory:
        path, snapshot = Path(directory) / "run.sqlite", Timings()
        snapshot.measure(SnapshotStore(path).save, START, table.pack())
        resident = table.nbytes + weights.nbytes
        del table, weights, profile  # recovery needs their place
        recover = _recover(path, distance)
    return {
        "draw_window_ms": draw.median_ms,
        "reweigh_ms": reweigh.median_ms,
        "solve_ms": solve.median_ms,
        "snapshot_ms": snapshot.median_ms,
        "recover_ms": recover.median_ms,
        "resident_bytes_per_sample": round(resident / num_samples, 3),
        "draw_window_best_ms": draw.best_ms,
        "reweigh_best_ms": reweigh.best_ms,
        "solve_best_ms": solve.best_ms,
    }


def bench_service(*, seconds: float) -> dict[str, Any]:
    """A selection with its log on disk: scores while windows are drawn, many trainers at once, recovery."""
    distance = np.random.default_rng(0).random(SERVICE_SIZE, dtype=np.float32)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.sqlite"
        log = RunLog(path)
        selection = Selection(distance, CONFIG, runlog=log)
        flood, _ = _push_scores(selection, seconds, report_every_s=0.0, window_every_s=0.0)
        acks, windows = _push_scores(
            selection, seconds, report_every_s=REPORT_SCORES * WRITERS / PACED_RATE, window_every_s=WINDOW_EVERY_S
        )
        asked = _ask_all_at_once(selection)
        selection._compaction.snapshot()
        selection.close()
        recover = _recover(path, distance)
        for snapshot in SnapshotStore(path).paths():
            snapshot.unlink()
        recover_log_only = _recover(path, distance)
    return {
        "scores_per_s": round(len(flood.seconds) * REPORT_SCORES / seconds),
        "ack_p99_ms": acks.quantile_ms(0.99),
        "ack_median_ms": acks.median_ms,
        "ack_p99_flooded_ms": flood.quantile_ms(0.99),
        "window_durable_ms": windows.median_ms,
        "window_durable_best_ms": windows.best_ms,
        f"window_p99_ms_{TRAINERS}_threads": asked.quantile_ms(0.99),
        "recover_ms": recover.median_ms,
        "recover_log_only_ms": recover_log_only.median_ms,
    }


def _recover(path: Path, distance: NDArray[np.float32]) -> Timings:
    """Open a run as a restarted service does."""
    recover, log = Timings(), RunLog(path)
    recover.measure(Selection, distance, CONFIG, runlog=log).close()
    return recover


def _push_scores(
    selection: Selection, seconds: float, *, report_every_s: float, window_every_s: float
) -> tuple[Timings, Timings]:
    """Writers report, as fast as they are acknowledged or at a pace, while windows are drawn and controls change."""
    acks, windows, stop = [Timings() for _ in range(WRITERS)], Timings(), threading.Event()
    first = selection.next_window << 20  # reports of an earlier call have lower numbers

    def write(rank: int) -> None:
        rng, sequence = np.random.default_rng(rank), first
        stop.wait(report_every_s * rank / WRITERS)
        ids, values = rng.integers(0, selection.num_samples, REPORT_SCORES), rng.random(REPORT_SCORES, dtype=np.float32)
        while True:
            report = {"kind": "loss", "step": sequence, "producer": f"rank-{rank}", "sequence": sequence}
            acks[rank].measure(selection.report_scores, ids, values, **report)
            sequence += 1
            if stop.wait(max(0.0, report_every_s - acks[rank].seconds[-1])):
                return

    def draw() -> None:
        while True:
            size = 0.2 + selection.next_window % 100 / 300
            windows.measure(selection.window, selection.next_window, effective_size=size)
            if stop.wait(window_every_s):
                return

    with ThreadPoolExecutor(WRITERS + 1) as threads:
        tasks = [threads.submit(write, rank) for rank in range(WRITERS)] + [threads.submit(draw)]
        time.sleep(seconds)
        stop.set()
        for task in tasks:
            task.result()
    return Timings(seconds=[value for rank in acks for value in rank.seconds]), windows


def _ask_all_at_once(selection: Selection) -> Timings:
    """Every trainer asks for the newest window at the same moment, some times over."""
    asked, newest, start = Timings(), selection.next_window - 1, threading.Barrier(TRAINERS)

    def ask() -> None:
        for _ in range(4):
            start.wait()
            asked.measure(selection.window, newest)

    with ThreadPoolExecutor(TRAINERS) as threads:
        for done in [threads.submit(ask) for _ in range(TRAINERS)]:
            done.result()
    return asked


def _available_bytes() -> int:
    """Return the memory that can be taken without swapping, which includes most of the page cache."""
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _full_reports(num_samples: int) -> Iterator[ScoreReport]:
    """A score for every sample, in reports of a million, one at a time: all at once would need 12 bytes a sample."""
    for first in range(0, num_samples, 1_000_000):
        ids = np.arange(first, min(first + 1_000_000, num_samples))
        values = np.ones(len(ids), np.float32)
        yield ScoreReport(ids=ids, values=values, kind="loss", step=0, producer="bench", sequence=first)


if __name__ == "__main__":
    run(selection)
