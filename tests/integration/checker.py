"""Decides whether a run kept its promises, from the oracle files of the consuming side and the run log alone.

It shares no code with what it judges but for two references: the decoder that says what a draw's pixels are, and
nothing else. Each function `i*` is one invariant and returns what broke it, one line for each breach.

Lineage: incarnations in order of their start. A later one that begins at step s overrules what earlier ones did from s
on; what they did twice must have been the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = Mapping[str, Any]
RELATIVE = 1e-9


@dataclass(frozen=True, kw_only=True)
class LoggedWindow:
    """One row of the log's windows."""

    index: int
    version: int
    first_draw: int
    temperature: float
    effective_size: float
    ids: NDArray[np.int64] | None
    probability: NDArray[np.float64] | None
    num_draws: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the checker reads."""

    incarnations: tuple[tuple[Record, ...], ...]
    """Oracle lines of each incarnation of each rank, in order of their start."""
    windows: Mapping[int, LoggedWindow]
    entries: tuple[Record, ...]
    """Rows of the log table, in order."""
    scores: frozenset[tuple[str, int]]
    """(producer, report) of every score report in the log."""
    global_batch: int
    window_steps: int
    initial_effective_size: float
    acknowledged: tuple[Record, ...] = ()
    """Replies that a client got: {"version", "window", "kind", "value"} for controls, {"producer", "report"} for
    scores."""
    poisoned: frozenset[int] = frozenset()
    """Samples that the attacker made bad; no other may be substituted."""

    @property
    def lineage(self) -> dict[tuple[int, int], Record]:
        """(step, rank) -> the line of the surviving incarnation."""
        surviving: dict[tuple[int, int], Record] = {}
        for lines in self.incarnations:
            if not lines:
                continue
            first, rank = lines[0]["step"], lines[0]["rank"]
            surviving = {key: line for key, line in surviving.items() if key[1] != rank or key[0] < first}
            surviving |= {(line["step"], line["rank"]): line for line in lines}
        return surviving

    def window_of(self, step: int) -> LoggedWindow | None:
        """The logged window that covers a step."""
        return self.windows.get(step // self.window_steps)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the checker found."""

    breaches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Invariant -> breaches; only invariants that were broken."""
    steps: int
    """Steps of the surviving lineage."""
    draws: int
    """Draws delivered to it."""
    substituted: int
    """Draws among them that a spare took."""
    digest: str
    """Digest of (draw, sample, pixel hash) in order: equal for runs that saw the same (I11)."""

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.breaches


def read_evidence(run_dir: Path, **known: Any) -> Evidence:
    """Read a run's oracle files, configuration and log."""
    files = sorted((run_dir / "oracle").glob("*.jsonl"), key=lambda path: int(path.name.split("-")[0]))
    config = json.loads((run_dir / "config.json").read_text())
    connection = sqlite3.connect(f"{(run_dir / 'run.sqlite').absolute().as_uri()}?mode=ro", uri=True)
    try:
        names = [row[1] for row in connection.execute("PRAGMA table_info(log)")]
        entries = tuple(
            dict(zip(names, row, strict=True)) for row in connection.execute("SELECT * FROM log ORDER BY sequence")
        )
        windows = {window.index: window for window in map(_window, connection.execute(WINDOWS))}
        scores = frozenset(connection.execute("SELECT producer, report FROM scores"))
    finally:
        connection.close()
    return Evidence(
        incarnations=tuple(tuple(_lines(path)) for path in files),
        windows=windows,
        entries=entries,
        scores=scores,
        global_batch=config["train"]["global_batch"],
        window_steps=config["train"]["window_steps"],
        initial_effective_size=config["curriculum"]["start"],
        **known,
    )


def check(
    evidence: Evidence,
    *,
    reference: Callable[[Sequence[int], Sequence[int]], Sequence[str]] | None = None,
    most_pixels: int = 64,
    longest_gap_s: float = math.inf,
) -> Verdict:
    """Judge a run.

    Args:
        evidence: what was read.
        reference: (sample ids, draws) -> pixel hashes of an independent decode; None leaves I3 to the overlap of
            incarnations.
        most_pixels: images that are decoded again, evenly over the run.
        longest_gap_s: seconds that may lie between two steps of one incarnation.
    """
    found = {
        "I1": i1_every_draw_once(evidence),
        "I2": i2_no_step_twice(evidence),
        "I3": i3_pixels(evidence, reference, most_pixels) if reference else [],
        "I4": i4_acknowledged_is_there(evidence),
        "I5": i5_value_in_force(evidence),
        "I6": i6_repeated_steps_are_equal(evidence),
        "I7": i7_only_bad_samples_are_replaced(evidence),
        "I8": i8_no_long_wait(evidence, longest_gap_s),
        "I9": i9_probabilities(evidence),
    }
    lineage = evidence.lineage
    lines = [lineage[key] for key in sorted(lineage)]
    return Verdict(
        breaches={name: tuple(lines) for name, lines in found.items() if lines},
        steps=len({step for step, _ in lineage}),
        draws=sum(len(line["draws"]) for line in lines),
        substituted=sum(len({bad["draw"] for bad in line["substituted"]}) for line in lines),
        digest=digest(lines),
    )


def digest(lines: Iterable[Record]) -> str:
    """Return the digest of (draw, sample, pixel hash), in order of draw."""
    rows = [row for line in lines for row in zip(line["draws"], line["samples"], line["pixels"], strict=True)]
    return hashlib.sha256("\n".join(f"{d} {s} {p}" for d, s, p in sorted(rows)).encode()).hexdigest()[:16]


def i1_every_draw_once(evidence: Evidence) -> list[str]:
    """Every draw of every consumed step is delivered or substituted, never both, with the sample of its window."""
    breaches, by_step = [], _by_step(evidence)
    for step, lines in by_step.items():
        batch, window = evidence.global_batch, evidence.window_of(step)
        wanted = range(step * batch, (step + 1) * batch)
        draws = [draw for line in lines for draw in line["draws"]]
        if sorted(draws) != list(wanted):
            lost, extra = sorted(set(wanted) - set(draws)), len(draws) - len(set(draws))
            breaches.append(f"step {step}: {len(lost)} draws lost {lost[:3]}, {extra} repeated")
        if window is None or window.ids is None:
            breaches.extend([] if window else [f"step {step}: consumed from a window that is not in the log"])
            continue
        for line in lines:
            replaced = {bad["draw"]: bad["sample"] for bad in reversed(line["substituted"])}
            breaches += _wrong_samples(line, window, replaced)
    return breaches


def i2_no_step_twice(evidence: Evidence) -> list[str]:
    """No incarnation consumes a step twice, or skips one; a later one begins where its lineage allows."""
    breaches = []
    reached: dict[int, int] = {}
    for lines in evidence.incarnations:
        steps = [line["step"] for line in lines]
        if steps and steps != list(range(steps[0], steps[0] + len(steps))):
            breaches.append(f"an incarnation of rank {lines[0]['rank']} consumed steps {_shortened(steps)}")
        if steps:
            rank = lines[0]["rank"]
            if steps[0] > reached.get(rank, 0):
                breaches.append(f"rank {rank} went on at step {steps[0]}, but had consumed only {reached.get(rank, 0)}")
            reached[rank] = max(reached.get(rank, 0), steps[-1] + 1)
    return breaches


def i3_pixels(
    evidence: Evidence, reference: Callable[[Sequence[int], Sequence[int]], Sequence[str]], most: int
) -> list[str]:
    """Delivered pixels are those of an independent decode of the same sample and draw."""
    rows = [
        row
        for key, line in sorted(evidence.lineage.items())
        for row in zip(line["samples"], line["draws"], line["pixels"], strict=True)
    ]
    shown = [rows[place] for place in np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] if rows else []
    again = reference([row[0] for row in shown], [row[1] for row in shown]) if shown else []
    pairs = zip(shown, again, strict=True)
    return [f"draw {draw}: pixels of sample {sample} differ" for (sample, draw, got), want in pairs if got != want]


def i4_acknowledged_is_there(evidence: Evidence) -> list[str]:
    """What was acknowledged to a client is in the log, as it was acknowledged."""
    breaches = []
    controls = {entry["version"]: entry for entry in evidence.entries if entry["kind"] in CONTROLS}
    for reply in evidence.acknowledged:
        if "producer" in reply:
            if (reply["producer"], reply["report"]) not in evidence.scores:
                breaches.append(f"score report {reply['report']} of {reply['producer']} was acknowledged and is gone")
            continue
        entry = controls.get(reply["version"])
        if entry is None:
            breaches.append(f"control {reply['version']} was acknowledged and is gone")
        elif (entry["kind"], entry["window"]) != (reply["kind"], reply["window"]):
            breaches.append(f"control {reply['version']} was acknowledged for window {reply['window']}; {dict(entry)}")
    return breaches


def i5_value_in_force(evidence: Evidence) -> list[str]:
    """The effective size of each window is the one that the log's entries give it; batches carry its version."""
    breaches = []
    for index, window in sorted(evidence.windows.items()):
        kind, value = _in_force(evidence, index)
        got = window.temperature if kind == "temperature" else window.effective_size
        if value is not None and math.isfinite(window.temperature) and not math.isclose(got, value, rel_tol=RELATIVE):
            breaches.append(f"window {index}: {kind} {got} in force; the log gives {value}")
    for (step, rank), line in sorted(evidence.lineage.items()):
        owner = evidence.window_of(step)
        if owner is not None and line["version"] != owner.version:
            breaches.append(f"step {step}, rank {rank}: version {line['version']}; its window has {owner.version}")
    return breaches


def i6_repeated_steps_are_equal(evidence: Evidence) -> list[str]:
    """A step that several incarnations consumed gave each of them the same draws, samples and pixels."""
    breaches: list[str] = []
    seen: dict[tuple[int, int], Record] = {}
    for lines in evidence.incarnations:
        for line in lines:
            key = line["step"], line["rank"]
            before = seen.setdefault(key, line)
            differing = [name for name in ("draws", "samples", "version", "pixels") if line[name] != before[name]]
            breaches += [f"step {key[0]}, rank {key[1]}: {name} differ between incarnations" for name in differing]
    return breaches


def i7_only_bad_samples_are_replaced(evidence: Evidence) -> list[str]:
    """Only samples that are bad are substituted: infrastructure faults cost no draw."""
    return [
        f"draw {bad['draw']}: sample {bad['sample']} was substituted ({bad['reason']}) and is not bad"
        for line in evidence.lineage.values()
        for bad in line["substituted"]
        if bad["sample"] not in evidence.poisoned
    ]


def i8_no_long_wait(evidence: Evidence, longest_s: float) -> list[str]:
    """No two steps of an incarnation lie further apart than allowed."""
    breaches = []
    for lines in evidence.incarnations:
        for before, line in itertools.pairwise(lines):
            gap = line["time"] - before["time"]
            if gap > longest_s:
                breaches.append(f"step {line['step']}: {gap:.1f} s after the one before; at most {longest_s:g} allowed")
    return breaches


def i9_probabilities(evidence: Evidence) -> list[str]:
    """What was drawn had a finite probability above zero, the one that its window logged."""
    breaches = []
    for (step, rank), line in sorted(evidence.lineage.items()):
        values = np.asarray(line["probability"])
        if not (np.isfinite(values).all() and (values > 0).all() and (values <= 1).all()):
            breaches.append(f"step {step}, rank {rank}: a probability is not in (0, 1]")
        window = evidence.window_of(step)
        if window is not None and window.probability is not None:
            breaches += _wrong_probabilities(line, window)
    return breaches


CONTROLS = ("effective_size", "temperature", "policy", "release", "round")
WINDOWS = 'SELECT "index", version, first_draw, temperature, effective_size, num_draws, ids, probability FROM windows'


def _by_step(evidence: Evidence) -> dict[int, list[Record]]:
    by_step: dict[int, list[Record]] = {}
    for (step, _), line in sorted(evidence.lineage.items()):
        by_step.setdefault(step, []).append(line)
    return by_step


def _wrong_samples(line: Record, window: LoggedWindow, replaced: Mapping[int, int]) -> list[str]:
    """Draws of a line whose sample is neither their window's nor a spare in its place."""
    assert window.ids is not None
    breaches = []
    spares = set(window.ids[window.num_draws :].tolist())
    for draw, sample in zip(line["draws"], line["samples"], strict=True):
        position = draw - window.first_draw
        planned = int(window.ids[position]) if 0 <= position < window.num_draws else None
        if draw in replaced:
            if replaced[draw] != planned or sample not in spares:
                breaches.append(f"draw {draw}: sample {sample} stands for {replaced[draw]}; {planned} was drawn")
        elif sample != planned:
            breaches.append(f"draw {draw}: sample {sample} was delivered; {planned} was drawn")
    return breaches


def _wrong_probabilities(line: Record, window: LoggedWindow) -> list[str]:
    """Draws of a line, not substituted, whose probability is not the one that their window logged."""
    assert window.probability is not None
    replaced = {bad["draw"] for bad in line["substituted"]}
    rows = [
        (draw, value, float(window.probability[draw - window.first_draw]))
        for draw, value in zip(line["draws"], line["probability"], strict=True)
        if draw not in replaced and 0 <= draw - window.first_draw < window.num_draws
    ]
    return [
        f"draw {draw}: probability {value} was delivered; {logged} was logged"
        for draw, value, logged in rows
        if not math.isclose(value, logged, rel_tol=RELATIVE)
    ]


def _in_force(evidence: Evidence, index: int) -> tuple[str, float | None]:
    """(kind, value) that the log's entries put in force for a window; a person's value holds until released."""
    scheduled: float | None = evidence.initial_effective_size
    manual: tuple[str, float] | None = None
    for entry in evidence.entries:
        if entry["window"] > index:
            continue
        if entry["kind"] == "schedule":
            scheduled = json.loads(entry["value"])
        elif entry["kind"] in ("effective_size", "temperature"):
            manual = entry["kind"], json.loads(entry["value"])
        elif entry["kind"] == "release":
            manual = None
    return manual or ("effective_size", scheduled)


def _window(row: tuple[Any, ...]) -> LoggedWindow:
    index, version, first_draw, temperature, effective_size, num_draws, ids, probability = row
    drawn = None if probability is None else np.frombuffer(probability, "<f8")
    wide = drawn is not None and len(ids) == 8 * len(drawn)
    return LoggedWindow(
        index=index,
        version=version,
        first_draw=first_draw,
        temperature=temperature,
        effective_size=effective_size,
        ids=None if ids is None else np.frombuffer(ids, "<i8" if wide else "<u4").astype(np.int64),
        probability=drawn,
        num_draws=num_draws,
    )


def _lines(path: Path) -> Iterable[Record]:
    """The lines of an oracle file; a killed writer may have torn the last one."""
    for text in path.read_text().splitlines(keepends=True):
        if text.endswith("\n"):
            yield json.loads(text)


def _shortened(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (" ..." if len(steps) > 8 else "")
