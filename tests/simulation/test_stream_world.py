"""A world in which the stream's logic lives alone: clock, loaders and network are a simulation, faults come as rules.

The model is one line: the batch of a step is a pure function of the step. Whatever happens to loaders, it must come,
once, in order, with no slot of shared memory lost, and within its deadline while anybody can serve.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from loader import BadSample, BatchSpec, FixedWindows, LoaderLost, Pixels, StreamConfig, Transform
from loader.batches.assembly import Assembler, StreamStats
from loader.batches.windows import FixedWindow
from loader.errors import StreamStalled
from tests.simulation.worlds import assert_found_out, examples, too_rare, world_settings

EXAMPLES, STEPS = examples(100), 50
CONFIG = StreamConfig(
    seed=1, global_batch=8, total_steps=10**6, window_steps=4, min_request_images=8, max_bad_share=1.0,
    transform=Transform(size=2),
)  # fmt: skip
NUM_SAMPLES = 60
POISONED = frozenset({7, 23})
NAMES = tuple(f"loader-{number}" for number in range(5))
RESTART_S, SILENCE_S, ORDINARY_S = 2.0, 10.0, 0.1
RECOVERY_S, LONGEST_S = 10.0, 29.0
"""Longest wait for a batch while somebody can serve, all others frozen; with loaders fifty times slower than others."""
KINDS = ("kill", "freeze", "late reply", "slow", "scale", "reorder")
FAULTS: Counter[str] = Counter()
"""Faults of the whole session, by kind, and the batches that came through them."""


def pixels_of(samples, draws):
    """uint8[n, 3, 2, 2] that tell sample and draw."""
    mixed = (np.asarray(samples) * 1_000_003 + np.asarray(draws) * 7919)[:, None] * np.arange(1, 13)
    return (mixed % 251).astype(np.uint8).reshape(-1, 3, 2, 2)


def window(index: int) -> FixedWindow:
    """Random draws, and spares of which some are poisoned too."""
    rng = np.random.default_rng([5, index])
    base = FixedWindows(np.arange(NUM_SAMPLES), CONFIG).window(index)
    return replace(
        base,
        sample_ids=rng.integers(0, NUM_SAMPLES, len(base.sample_ids)),
        spare_ids=rng.integers(0, NUM_SAMPLES, 4),
        spare_probability=np.full(4, 0.1),
    )


class Windows:
    """A window fetcher that answers at once."""

    def prefetch(self, index):
        pass

    def peek(self, index):
        return None

    def get(self, index):
        return window(index)


@dataclass
class Member:
    """A loader process."""

    alive: bool = True
    back_s: float = 0.0
    frozen_since_s: float | None = None
    slowness: float = 1.0


@dataclass(eq=False)
class Request:
    member: str
    spec: BatchSpec
    due_s: float
    lost: bool = False


class World:
    """Clock, loaders, and what the pool believes of them."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.loaders = {name: Member() for name in NAMES[:3]}
        self.believed = tuple(self.loaders)
        self.asked_s = self.now_s
        self.open: dict[Request, None] = {}
        """Ordered: with a set, the same life would take another order each time."""
        self.served_s = self.now_s
        """When somebody could last serve."""

    # the clock, as `time` in the module
    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.advance(self.now_s + seconds)

    def advance(self, until_s: float) -> None:
        self.now_s = max(self.now_s, until_s)
        for name, member in self.loaders.items():
            if member.frozen_since_s is not None and self.now_s - member.frozen_since_s > SILENCE_S:
                self.kill(name)  # the fleet replaces who is silent
            if not member.alive and self.now_s >= member.back_s:
                self.loaders[name] = Member()
        if any(member.alive and member.frozen_since_s is None for member in self.loaders.values()):
            self.served_s = self.now_s

    def kill(self, name: str) -> None:
        self.loaders[name] = Member(alive=False, back_s=self.now_s + RESTART_S)
        for request in self.open:
            if request.member == name and request.due_s > self.now_s:
                request.due_s, request.lost = self.now_s, True

    # the pool
    def members(self):
        if self.now_s - self.asked_s > 0.5:
            self.asked_s = self.now_s
            self.believed = tuple(name for name, member in self.loaders.items() if member.alive)
        return self.believed

    def submit(self, member, spec):
        state = self.loaders.get(member)
        if state is None:
            self.believed = tuple(name for name in self.believed if name != member)
            raise LoaderLost(f"{member} has left the fleet")
        due = self.now_s + ORDINARY_S * state.slowness if state.frozen_since_s is None else float("inf")
        request = Request(member, spec, due)
        if not state.alive:
            request.due_s, request.lost = self.now_s, True
        self.open[request] = None
        return request

    def wait(self, handles, timeout_s):
        first = min(request.due_s for request in handles)
        self.advance(min(self.now_s + timeout_s, max(self.now_s, first)))
        return [request for request in handles if request.due_s <= self.now_s]

    def result(self, request):
        if request.lost:
            self.open.pop(request, None)
            self.believed = tuple(name for name in self.believed if name != request.member)
            raise LoaderLost(f"{request.member} was lost")
        spec = request.spec
        bad = [row for row, sample in enumerate(spec.sample_ids) if int(sample) in POISONED]
        images = pixels_of(spec.sample_ids, spec.draws)
        images[bad] = 0
        listed = tuple(
            BadSample(row=row, sample_id=int(spec.sample_ids[row]), draw=int(spec.draws[row]), key="k", reason="bad")
            for row in bad
        )
        return Pixels(images=images, bad=listed, decode_s=0.0)

    def release(self, request):
        self.open.pop(request, None)

    def explain(self, members):
        return {}


def expected(step: int):
    """(draws, samples, pixels, replaced draws) of a step, by the rule alone."""
    plan = window(step // CONFIG.window_steps)
    first = step % CONFIG.window_steps * CONFIG.global_batch
    positions = range(first, first + CONFIG.global_batch)
    samples, replaced, total = [], [], len(plan.sample_ids)
    for position in positions:
        chain = [plan.sample_ids[position], *(plan.spare_ids[(position * 4 // total + n) % 4] for n in range(4))]
        tried = [sample for sample in chain if int(sample) in POISONED]
        good = next((sample for sample in chain if int(sample) not in POISONED), None)
        if tried and tried[0] == chain[0]:
            replaced.append(plan.first_draw + position)
        samples.append(int(chain[-1] if good is None else good))
    draws = plan.first_draw + np.arange(first, first + CONFIG.global_batch)
    return draws, np.array(samples), pixels_of(samples, draws), replaced


class StreamWorld(RuleBasedStateMachine):
    """Faults and time, in any order."""

    @initialize(size=st.integers(1, 3))
    def begin(self, size):
        self.world = World()
        self.world.loaders = {name: Member() for name in NAMES[:size]}
        self.world.believed = tuple(self.world.loaders)
        self.delivered = 0
        self.stats = StreamStats()
        with self.in_the_world():
            hooks = {"stats": self.stats, "on_bad": lambda bad: None, "delivered": lambda: self.delivered}
            self.batches = Assembler(Windows(), self.world, CONFIG, **hooks).batches()
        self.stalled = self.slowed = False

    def in_the_world(self):
        return mock.patch(
            "loader.batches.assembly.time", SimpleNamespace(monotonic=self.world.monotonic, sleep=self.world.sleep)
        )

    def healthy(self):
        return [name for name, one in self.world.loaders.items() if one.alive and one.frozen_since_s is None]

    def fault(self, kind):
        FAULTS[kind] += 1

    @precondition(lambda self: not self.stalled)
    @rule(turns=st.integers(1, 12))
    def go_on(self, turns):
        for _ in range(turns):
            try:
                with self.in_the_world():
                    batch = next(self.batches)
            except StreamStalled:
                assert self.world.now_s - self.world.served_s > CONFIG.stall_timeout_s / 2, "somebody could have served"
                self.stalled = True
                return
            if batch is not None:
                self.compare(batch)

    @precondition(lambda self: not self.stalled and self.healthy())
    @rule()
    def recover(self):
        """While somebody can serve, the next batch is not far: nobody waits for a restart or the fleet."""
        began, before = self.world.now_s, self.delivered
        while self.delivered == before:
            with self.in_the_world():
                batch = next(self.batches)
            if batch is not None:
                self.compare(batch)
            assert self.world.now_s - began < (LONGEST_S if self.slowed else RECOVERY_S), "the next batch took too long"

    def compare(self, batch):
        assert batch.step == self.delivered, "every step once, in order"
        draws, samples, pixels, replaced = expected(batch.step)
        np.testing.assert_array_equal(batch.draws, draws)
        np.testing.assert_array_equal(batch.sample_ids, samples)
        good = [int(sample) not in POISONED for sample in samples]
        np.testing.assert_array_equal(batch.images.numpy()[good], pixels[good])
        assert sorted({bad.draw for bad in batch.substituted}) == replaced
        self.delivered += 1
        FAULTS["batches"] += 1

    @rule(which=st.integers(0, 4))
    def kill(self, which):
        if healthy := self.healthy():
            self.fault("kill")
            self.world.kill(healthy[which % len(healthy)])

    @rule(which=st.integers(0, 4))
    def freeze(self, which):
        if healthy := self.healthy():
            self.fault("freeze")
            name = healthy[which % len(healthy)]
            self.world.loaders[name].frozen_since_s = self.world.now_s
            for request in self.world.open:
                if request.member == name and request.due_s > self.world.now_s:
                    request.due_s = float("inf")

    @precondition(lambda self: not self.stalled and len(self.healthy()) > 1)
    @rule(which=st.integers(0, 4))
    def freeze_at_work(self, which):
        self.go_on(1)
        self.freeze(which)
        self.recover()

    @rule()
    def thaw(self):
        """Late replies come after all."""
        for name, member in self.world.loaders.items():
            if member.frozen_since_s is not None:
                self.fault("late reply")
                member.frozen_since_s = None
                for request in self.world.open:
                    if request.member == name and not request.lost:
                        request.due_s = self.world.now_s

    @rule(which=st.integers(0, 4), slowness=st.sampled_from([1.0, 5.0, 50.0]))
    def slow_down(self, which, slowness):
        if healthy := self.healthy():
            self.fault("slow")
            self.slowed = True
            self.world.loaders[healthy[which % len(healthy)]].slowness = slowness

    @rule(size=st.integers(1, 5))
    def scale(self, size):
        self.fault("scale")
        for name in list(self.world.loaders):
            if name not in NAMES[:size]:
                self.world.kill(name)
                del self.world.loaders[name]
        for name in NAMES[:size]:
            self.world.loaders.setdefault(name, Member())

    @rule()
    def reorder(self):
        """The oldest requests are answered last."""
        waiting = [request for request in self.world.open if request.due_s != float("inf") and not request.lost]
        dues = sorted((request.due_s for request in waiting), reverse=True)
        for request, due in zip(sorted(waiting, key=lambda one: one.due_s), dues, strict=True):
            self.fault("reorder")
            request.due_s = due

    def teardown(self):
        if not hasattr(self, "batches"):
            return
        with self.in_the_world():
            self.batches.close()
        assert not self.world.open, "the memory of every request is given back"


StreamWorld.TestCase.settings = world_settings(max_examples=EXAMPLES, steps=STEPS)
TestStreamWorld = StreamWorld.TestCase


def test_every_kind_of_fault_came_often(record_property):
    """Counted in the machine above, which runs first."""
    record_property("faults", dict(FAULTS))
    assert too_rare(FAULTS, KINDS, fewest=EXAMPLES / 8) == {}
    assert too_rare(FAULTS, ["batches"], fewest=5 * EXAMPLES) == {}


def ignore_losses(self, request, error):
    """Nobody else is asked."""


def believe_every_reply(self, rows, spec, pixels):
    """A late reply overwrites what a spare has taken."""
    self._rows_of_rgb[rows] = pixels.images.transpose(0, 2, 3, 1)
    self._missing[rows] = False
    return []


def next_spare(position, attempt, *, num_draws, num_spares):
    """Spares in order of arrival, not of position."""
    taken.append(position)
    return len(taken) % num_spares if attempt < num_spares else None


taken: list[int] = []


@pytest.mark.faults
@pytest.mark.parametrize(
    ("where", "mutant"),
    [
        ("loader.batches.assembly.Assembler._reroute", ignore_losses),
        ("loader.batches.groups.Group.fill", believe_every_reply),
        ("loader.batches.groups.substitute", next_spare),
        ("loader.batches.assembly.Assembler._hedge", lambda self: None),
    ],
)
def test_a_broken_stream_is_found_out(where, mutant, monkeypatch):
    """The defence removed: the world notices."""
    monkeypatch.setattr(where, mutant)
    assert_found_out(StreamWorld, max_examples=100, steps=STEPS)
