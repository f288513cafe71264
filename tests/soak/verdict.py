"""The verdict on a fault run: invariants, leaks, and how long the run stood still after each kind of fault."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType

from deploy.console import table
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir, write_json
from loader import BatchSpec, LoaderConfig, LoaderWorker
from tests.faults.oracle import pixel_hash
from tests.integration.checker import check, read_evidence
from tests.soak.leaks import leaks, slopes
from tests.soak.record import Injection, Record

CHECKED_PIXELS = 512
LONGEST_GAP_S = 75.0
"""Between two steps: the wait for a window and the one for its images, 30 s each, a frozen process, and some slack."""
BEGUN_S = 1.0
"""A wait that began so long before a fault is an earlier one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a fault run showed."""

    seed: int
    faults: Mapping[str, int]
    """Kind -> how often it was injected."""
    violations: tuple[str, ...]
    """Invariants that were broken, leaks, and an end that was not clean; empty is a pass."""
    recovery: Mapping[str, Mapping[str, float]]
    """Kind -> {"p50_s", "p95_s"} of the standstill that followed."""
    growth: Mapping[str, float]
    """Role -> MiB a minute by which its oldest process grew."""
    steps: int
    """Optimizer steps of the surviving lineage."""
    draws: int
    """Draws delivered to it."""
    incarnations: int
    """Starts of the trainer."""
    digest: str
    """Digest of everything that it saw."""

    def data(self) -> dict[str, Any]:
        """As JSON."""
        facts = asdict(self)
        return facts | {"growth_mib_per_min": facts.pop("growth")}

    def view(self) -> RenderableType:
        """Return the verdict for people."""
        rows = [
            (kind, count, *self.recovery.get(kind, {}).values()) if kind in self.recovery else (kind, count, None, None)
            for kind, count in sorted(self.faults.items())
        ]
        lines = "\n".join(self.violations) or "no violation"
        summary = f"{self.steps:,} steps, {self.draws:,} draws, {self.incarnations} starts of the trainer: {lines}"
        return Group(table("faults and standstill", ("fault", "times", "p50 s", "p95 s"), rows), summary)


def judge(
    run: RunDir, config: RunConfig, record: Record, *, acknowledged: Sequence[Mapping[str, Any]], seed: int
) -> Outcome:
    """Ask the checker, look for leaks, measure the standstills; soak.json in the run directory holds the answer."""
    evidence = read_evidence(run.path, acknowledged=tuple(acknowledged), poisoned=record.poisoned)
    checked = check(
        evidence, reference=reference_decoder(config), most_pixels=CHECKED_PIXELS, longest_gap_s=LONGEST_GAP_S
    )
    broken = [f"{name}: {line}" for name, lines in checked.breaches.items() for line in lines[:5]]
    moments = sorted(line["time"] for lines in evidence.incarnations for line in lines)
    outcome = Outcome(
        seed=seed,
        faults=dict(Counter(injection.kind for injection in record.injections)),  # `asdict` breaks a Counter
        violations=(*broken, *leaks(record)),
        recovery=standstills(record.injections, moments),
        growth=slopes(record),
        steps=checked.steps,
        draws=checked.draws,
        incarnations=len(evidence.incarnations),
        digest=checked.digest,
    )
    write_json(
        run.path / "soak.json", outcome.data() | {"injections": [(i.time, i.kind, i.what) for i in record.injections]}
    )
    return outcome


def reference_decoder(config: RunConfig) -> Callable[[Sequence[int], Sequence[int]], list[str]]:
    """Pixel hashes of samples under draws, by a fresh loader with one thread and no cache."""

    def decode(samples: Sequence[int], draws: Sequence[int]) -> list[str]:
        with LoaderWorker(config.data.index, LoaderConfig(allow_hosts=config.loader.allow_hosts)) as worker:
            drawn = {"sample_ids": np.asarray(samples), "draws": np.asarray(draws)}
            spec = BatchSpec(**drawn, seed=config.train.seed, transform=config.data.transform)
            return [pixel_hash(image) for image in worker.load(spec).images.transpose(0, 2, 3, 1)]

    return decode


def standstills(injections: Sequence[Injection], moments: Sequence[float]) -> dict[str, dict[str, float]]:
    """How long the trainer got no batch after a fault, by kind: the longest wait before the next fault came.

    Args:
        injections: the faults in order.
        moments: when batches were consumed, sorted, seconds since the epoch.
    """
    waits: dict[str, list[float]] = {}
    ends = [later.time for later in injections[1:]] + [moments[-1] if moments else 0.0]
    for injection, end in zip(injections, ends, strict=True):
        gaps = [
            right - max(left, injection.time)
            for left, right in itertools.pairwise(moments)
            if right > injection.time and injection.time - BEGUN_S <= left < end
        ]
        if gaps:
            waits.setdefault(injection.kind, []).append(max(gaps))
    return {
        kind: {"p50_s": round(statistics.median(values), 2), "p95_s": round(float(np.quantile(values, 0.95)), 2)}
        for kind, values in waits.items()
    }
