"""A world in which the selection lives alone: its disk and the network to it are a simulation, faults come as rules.

Trainers and a person send messages; the network loses, repeats, delays and reorders them and their answers; the
process dies before, in the middle of and after commits, and the disk fills up. The model keeps what was answered, and
nothing else: that must be there, unchanged, for ever.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scoring import Control, LogUnavailable, RunLog, Selection, VersionConflict, replay_run
from tests.scoring.configs import selection_config
from tests.scoring.crashes import CONNECT, Crash, Faults, FaultyDisk, died, failing_connect
from tests.simulation.worlds import assert_found_out, examples, too_rare, world_settings
from trainer import ScheduledWindows

EXAMPLES, STEPS = examples(40), 40
N = 40
DISTANCE = np.random.default_rng(2).random(N).astype(np.float32)
CONFIG = selection_config(
    seed=9, global_batch=4, window_steps=2, num_samples=N, start=0.3, snapshot_windows=2, kept_windows=3
)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""The disk is simulated, so nothing need wait for a real one."""
KINDS = ("crash", "crash at a commit", "repeated", "lost", "reordered", "answer lost", "full disk")
FAULTS: Counter[str] = Counter()
"""Faults of the whole session, by kind, and what followed from them."""


class WorldFaults(Faults):
    """Commits that die, or find the disk full."""

    full = False

    def pass_through(self, name, act, torn=lambda: None):
        if self.full:
            raise sqlite3.OperationalError("database or disk is full") if name == "commit" else OSError(28, "full")
        return super().pass_through(name, act, torn)


@dataclass(eq=False)
class Message:
    """A question that its sender repeats until it is answered."""

    kind: str
    content: Any
    number: int
    outcome: Any = None
    """The answer, once the sender has it."""


@dataclass
class Known:
    """The answers that senders have."""

    windows: dict[int, str] = field(default_factory=dict)
    controls: dict[str, Any] = field(default_factory=dict)
    reports: dict[tuple[str, int], Any] = field(default_factory=dict)


def schedule(index: int) -> float:
    """The trainer's effective size by window."""
    return 0.2 + 0.4 * ((index * 7) % 10) / 10


class SelectionWorld(RuleBasedStateMachine):
    """Messages, deliveries and faults, in any order."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(prefix="simulated-world-", dir=MEMORY))
        self.lives = itertools.count()
        self.path = self.folder / "life" / "run.sqlite"
        self.path.parent.mkdir()
        self.selection = None
        self.known = Known()
        self.wire: list[Message] = []
        self.numbers = itertools.count()
        self.sequences = {"a": itertools.count(), "b": itertools.count()}
        self.unanswered: list[Message] = []
        self.come_up()

    def come_up(self):
        """The process starts again from what is on the disk."""
        self.faults = WorldFaults()
        with (
            mock.patch(CONNECT, failing_connect(self.faults, self.path)),
            mock.patch("scoring.log.snapshots.Disk", return_value=FaultyDisk(self.faults)),
        ):
            self.faults.log = RunLog(self.path)
            try:
                self.selection = Selection(DISTANCE, CONFIG, runlog=self.faults.log, clock=lambda: 0.0)
            except BaseException:
                self.faults.log.close()
                raise

    def trainer(self):
        """A trainer that asks again for windows handed out while the disk was full, once it needs a later one."""
        return ScheduledWindows(self.selection, lambda progress: schedule(round(progress * 10**4)), 1, 10**4)

    def die(self, kind):
        """End the process; everything that is not on the disk is lost."""
        FAULTS[kind] += 1
        self.path = died(self.path, self.folder / f"life-{next(self.lives)}")
        self.faults.log.close()
        self.selection = None

    # -- senders ------------------------------------------------------------------------------------------------------

    def send(self, kind, content):
        message = Message(kind, content, next(self.numbers))
        self.unanswered.append(message)
        self.wire.append(message)

    @rule(
        kind=st.sampled_from(["effective_size", "temperature", "release"]),
        value=st.floats(0.1, 0.6),
        versioned=st.booleans(),
    )
    def change(self, kind, value, versioned):
        expected = len(self.known.controls) if versioned else None
        chosen = None if kind == "release" else round(value, 3)
        request = f"control-{next(self.numbers)}"
        self.send("control", Control(kind=kind, value=chosen, author="ann", expected_version=expected, request=request))

    @rule(count=st.integers(1, 5))
    def ask_for_windows(self, count):
        for ahead in range(count):
            self.send("window", len(self.known.windows) + ahead)

    @rule(producer=st.sampled_from(["a", "b"]), step=st.integers(0, 20), seed=st.integers(0, 1000))
    def report(self, producer, step, seed):
        rng = np.random.default_rng(seed)
        ids = rng.integers(-2, N + 2, 10)  # some are unknown, and some come twice
        values = np.where(rng.random(10) < 0.2, np.nan, rng.random(10))
        self.send("report", (producer, next(self.sequences[producer]), step, ids, values))

    # -- the network --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.unanswered)
    @rule(which=st.integers(0, 10**6))
    def send_again(self, which):
        FAULTS["repeated"] += 1
        self.wire.append(self.unanswered[which % len(self.unanswered)])

    @precondition(lambda self: self.wire)
    @rule(which=st.integers(0, 10**6))
    def lose(self, which):
        FAULTS["lost"] += 1
        self.wire.pop(which % len(self.wire))

    @precondition(lambda self: self.wire and self.selection is not None)
    @rule(which=st.integers(0, 10**6), answer_lost=st.booleans())
    def deliver(self, which, answer_lost):
        place = which % len(self.wire)
        FAULTS["reordered"] += place > 0
        message = self.wire.pop(place)
        try:
            answer = self.ask(message)
        except Crash:
            self.die("crash at a commit")
            return
        except LogUnavailable:
            FAULTS["refused on a full disk"] += 1
            return
        FAULTS["answer lost"] += answer_lost
        if not answer_lost:
            self.learn(message, answer)

    @precondition(lambda self: self.wire and self.selection is not None)
    @rule(count=st.integers(1, 10), seed=st.integers(0, 1000), orderly=st.booleans())
    def deliver_some(self, count, seed, orderly):
        rng = np.random.default_rng(seed)
        for _ in range(min(count, len(self.wire))):
            if self.selection is not None:
                which, answer_lost = (0, False) if orderly else (int(rng.integers(10**6)), rng.random() < 0.25)
                if not orderly and self.unanswered and rng.random() < 0.25:
                    self.send_again(which)
                self.deliver(which=which, answer_lost=answer_lost)

    def ask(self, message):
        if message.kind == "window":
            if message.content > max(self.selection.next_window, len(self.known.windows)):
                return None
            return self.trainer().window(message.content).digest
        if message.kind == "control":
            control = message.content
            before = self.selection.state()["control_version"]
            applied = control.request in {entry.request for entry in self.selection.log()}
            try:
                reply = self.selection.control(control)
            except VersionConflict:
                assert control.expected_version is not None
                assert control.expected_version != before
                assert not applied
                return "refused"
            assert applied or control.expected_version in (None, before), "compare and set"
            assert applied or reply.window > max(self.known.windows, default=-1), "no trainer has this window"
            return reply
        producer, sequence, step, ids, values = message.content
        return self.selection.report_scores(ids, values, kind="loss", step=step, producer=producer, sequence=sequence)

    def learn(self, message, answer):
        if answer is None:
            return
        if message in self.unanswered:
            self.unanswered.remove(message)
        if message.outcome is not None:
            assert answer == message.outcome, "the same question has one answer"
        message.outcome = answer
        if message.kind == "window":
            assert self.known.windows.setdefault(message.content, answer) == answer, "a window never changes"
        elif message.kind == "control" and answer != "refused":
            self.known.controls[message.content.request] = (message.content, answer)
        elif message.kind == "report":
            producer, sequence, step, ids, values = message.content
            self.known.reports[producer, sequence] = (step, ids, values)

    # -- the machine --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.selection is not None)
    @rule(how=st.sampled_from(["before", "torn", "after"]), ahead=st.integers(1, 3))
    def die_at_a_coming_commit(self, how, ahead):
        self.faults.at, self.faults.how = self.faults.count + ahead, how
        while self.wire and self.selection is not None:
            self.deliver(which=0, answer_lost=False)

    @precondition(lambda self: self.selection is not None)
    @rule()
    def die_now(self):
        self.die("crash")

    @precondition(lambda self: self.selection is not None)
    @rule(full=st.booleans())
    def disk(self, full):
        FAULTS["full disk"] += full
        self.faults.full = full

    @precondition(lambda self: self.selection is None)
    @rule()
    def restart(self):
        self.come_up()

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def what_was_answered_is_there(self):
        if getattr(self, "selection", None) is None:
            return
        entries = self.selection.log()
        by_request = {entry.request: entry for entry in entries if entry.request}
        assert len(by_request) == sum(bool(entry.request) for entry in entries), "a control is applied once"
        for control, reply in self.known.controls.values():
            entry = by_request[control.request]
            assert (entry.version, entry.window, entry.kind, entry.value) == (
                reply.version, reply.window, control.kind, control.value,
            )  # fmt: skip
        assert max(self.selection.next_window, self.faults.log.unlogged.end) >= len(self.known.windows)

    def check_everything(self):
        """Check windows and scores, and that the log alone gives them again; expensive, so once for each process."""
        newest = max(self.faults.log.unlogged.end - 1, *self.known.windows, -1)
        if newest >= 0:
            self.trainer().window(newest)
        for index, digest in self.known.windows.items():
            assert self.selection.window(index).digest == digest
        stored = {(report.producer, report.sequence): report for _, report in self.faults.log.reports()}
        assert stored.keys() >= {
            key for key, (_, ids, values) in self.known.reports.items() if usable(ids, values).any()
        }
        expected, holder = np.full(N, np.nan, np.float32), {}
        for key, report in stored.items():
            for place, value in zip(report.ids, report.values, strict=True):
                order = (report.step, *key)
                if order >= holder.get(int(place), (-1, "", -1)):
                    expected[place], holder[int(place)] = value, order
        np.testing.assert_array_equal(self.selection.scores("loss"), expected)
        for _, ids, values in self.known.reports.values():
            assert not np.isnan(self.selection.scores("loss")[ids[usable(ids, values)]]).any()
        if not self.selection._windows.unwritten:
            assert replay_run(self.faults.log, CONFIG, DISTANCE).reproduced
            self.check_values_in_force()

    def check_values_in_force(self):
        """The effective size of every window is a pure function of the log."""
        entries = self.selection.log()
        for facts, _ in self.faults.log.facts():
            manual = scheduled = None
            for entry in entries:
                if entry.window > facts.index:
                    continue
                if entry.kind == "schedule":
                    scheduled = entry.value
                elif entry.kind in ("effective_size", "temperature"):
                    manual = entry.kind, entry.value
                elif entry.kind == "release":
                    manual = None
            kind, value = manual or ("effective_size", CONFIG.curriculum.start if scheduled is None else scheduled)
            assert getattr(facts, kind) == pytest.approx(value, rel=1e-9)

    def teardown(self):
        if not hasattr(self, "folder"):
            return
        try:
            if self.selection is not None:
                self.die("crash")
            self.come_up()
            self.check_everything()
            self.faults.log.close()
        finally:
            shutil.rmtree(self.folder)


def usable(ids, values):
    """Which pairs of a report can be taken."""
    return (ids >= 0) & (ids < N) & ~np.isnan(values)


SelectionWorld.TestCase.settings = world_settings(max_examples=EXAMPLES, steps=STEPS)
TestSelectionWorld = SelectionWorld.TestCase


def test_every_kind_of_fault_came_often(record_property):
    """Counted in the machine above, which runs first."""
    record_property("faults", dict(FAULTS))
    assert too_rare(FAULTS, KINDS, fewest=EXAMPLES / 15) == {}


def answer_before_the_commit(self, report):
    """Scores are acknowledged while they are in memory alone."""
    self._committed.append((10**9 + len(self._committed), report))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("where", "mutant"),
    [
        ("scoring.log.group_commit.GroupCommit.submit", answer_before_the_commit),
        ("scoring.log.runlog.RunLog.entry_of", lambda self, request: None),
        ("scoring.log.window_store.WindowStore.flush", lambda self: self._unwritten.clear()),
        ("scoring.log.unlogged_windows.UnloggedWindows.add", lambda self, window, *, scores_through: None),
    ],
    ids=["answer before the commit", "controls applied twice", "windows not written", "unlogged windows not noted"],
)
def test_a_broken_selection_is_found_out(where, mutant, monkeypatch):
    """The defence removed: the world notices."""
    monkeypatch.setattr(where, mutant)
    assert_found_out(SelectionWorld, max_examples=1000, steps=STEPS)
