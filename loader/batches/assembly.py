"""Turns windows into finished batches: plans groups, sends requests, and deals with whatever goes wrong.

Every fault has the same cure, because a spec is a value: ask another loader. A lost loader's rows go to their next
choice in rendezvous order at once; a request past its deadline is asked of the next choice as well, the first
answer counts and the other is dropped. Loaders that owe an overdue answer get no new work until they give it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loader.batch import BadSample, Batch, BatchSpec
from loader.batches.groups import Group
from loader.batches.next_use import Foresight
from loader.batches.routing import Deadline, route
from loader.batches.substitution import BadSampleLimit
from loader.batches.windows import WindowFetcher
from loader.config import StreamConfig
from loader.decode.buffers import ImageBuffers
from loader.errors import LoaderLost, StreamStalled
from loader.pool import Handle, LoaderPool, TellingPool

_SPARED_FOR = 10.0
_LONGEST_SPARED_S = 30.0
"""A member that answered late gets no work for ten times as long as it took: a straggler costs a tenth of a wait."""

_POLL_S = 0.05
"""Longest wait before deadlines and the fleet's members are looked at again."""


@dataclass(slots=True)
class StreamStats:
    """Totals of a stream since it was made."""

    images: int = 0
    """Delivered to the trainer."""
    requests: int = 0
    """Sent to loaders."""
    hedged: int = 0
    """Requests that a second loader was asked for because the first was late."""
    rerouted: int = 0
    """Requests that another loader was asked for because the first was lost."""
    substituted: int = 0
    """Draws whose sample was bad."""
    wait_s: float = 0.0
    """Seconds the trainer waited."""


@dataclass(slots=True)
class _Request:
    group: Group
    rows: NDArray[np.int64]
    spec: BatchSpec
    member: str
    sent_s: float
    deadline_s: float
    """Age at which it is late, as it was known when it was sent."""
    tried: tuple[str, ...] = field(default=())
    """Members that were asked for these rows before."""
    hedged: bool = False
    """Another member has been asked as well."""


class Assembler:
    """Makes the batches of one rank, from a given step on."""

    def __init__(
        self,
        windows: WindowFetcher,
        loaders: LoaderPool,
        config: StreamConfig,
        *,
        stats: StreamStats,
        on_bad: Callable[[BadSample], None],
        delivered: Callable[[], int],
    ) -> None:
        self._windows, self._loaders, self._config = windows, loaders, config
        self._stats, self._on_bad, self._delivered = stats, on_bad, delivered
        self._next_step = delivered()
        self._groups: deque[Group] = deque()
        self._buffers, self._foresight = ImageBuffers(), Foresight()
        self._requests: dict[Handle, _Request] = {}
        self._deadline = Deadline(least_s=config.request_deadline_s)
        self._spared_until: dict[str, float] = {}
        self._limit = BadSampleLimit(config.max_bad_share)
        self._progress_s = time.monotonic()
        self._last_fault = "none"

    def batches(self) -> Generator[Batch | None, None, None]:
        """Yield every batch from the first step to the last, and None whenever there was nothing to yield for a while.

        Raises:
            StreamStalled: If nothing arrives within the stall timeout.
            TooManyBadSamplesError: If the share of bad samples is over its limit.
            LoaderError: Whatever a loader or the window source cannot cure.
        """
        try:
            while self._groups or self._next_step < self._config.total_steps:
                self._plan()
                if self._groups and self._groups[0].done:
                    yield from self._groups.popleft().batches()
                    self._progress_s = time.monotonic()
                    continue
                self._collect()
                self._loaders.refresh()  # who came while everybody that is known is stuck must be heard of
                self._hedge()
                self._check_stall()
                yield None
        finally:
            for handle in self._requests:
                self._loaders.release(handle)

    def _plan(self) -> None:
        """Send groups until enough steps are in flight, but never look further than one window ahead of the trainer."""
        config = self._config
        while self._next_step < config.total_steps and self._steps_in_flight() < self._prefetch_steps():
            window = self._next_step // config.window_steps
            furthest = self._delivered() // config.window_steps + 1
            if window > furthest:
                return
            window_end = min((window + 1) * config.window_steps, config.total_steps)
            steps = range(self._next_step, min(self._next_step + self._group_steps(), window_end))
            group = self._group(window, steps)
            self._next_step = steps.stop
            if steps.stop + self._prefetch_steps() > window_end and window < furthest:
                self._windows.prefetch(window + 1)
            self._groups.append(group)
            self._limit.planned(len(group))
            self._loaders.refresh()
            self._send(group, np.arange(len(group)))

    def _group(self, window: int, steps: range) -> Group:
        draws = self._windows.get(window)
        hints = self._foresight.hints(draws, self._windows.peek(window + 1))
        return Group(draws, steps, self._config, hints=hints, buffers=self._buffers)

    def _steps_in_flight(self) -> int:
        return sum(len(group.steps) for group in self._groups)

    def _prefetch_steps(self) -> int:
        """Steps in flight: those asked for, or more when requests would be small and memory allows it."""
        config = self._config
        step_bytes = 3 * config.transform.size**2 * config.local_batch
        allowed = min(2 * config.window_steps, config.prefetch_bytes // step_bytes)
        return max(config.prefetch_steps, min(2 * self._worthwhile_steps(), allowed))

    def _group_steps(self) -> int:
        """Steps that together give each loader a request worth sending, leaving room for a second group in flight."""
        return max(1, min(self._worthwhile_steps(), self._prefetch_steps() // 2))

    def _worthwhile_steps(self) -> int:
        wanted = self._config.min_request_images * max(1, len(self._loaders.members()))
        return -(-wanted // self._config.local_batch)

    def _send(self, group: Group, rows: NDArray[np.int64], tried: tuple[str, ...] = ()) -> None:
        """Ask for rows, each from its first choice among the members not tried and not overdue."""
        pending = rows
        while len(pending):
            members = self._members()
            shunned = {*tried, *self._suspects()}
            if shunned.issuperset(members):
                shunned = set(tried)  # one that was late is a better choice than one that was asked for just this
            choice = route(group.spec(pending).sample_ids, members, avoid=shunned)
            unsent = []
            for number in np.unique(choice):
                part = pending[choice == number]
                if not self._submit(group, part, members[number], tried):
                    unsent.append(part)
            pending = np.concatenate(unsent) if unsent else pending[:0]

    def _submit(self, group: Group, rows: NDArray[np.int64], member: str, tried: tuple[str, ...]) -> bool:
        spec = group.spec(rows)
        try:
            handle = self._loaders.submit(member, spec)
        except LoaderLost as error:
            self._last_fault = str(error)
            self._loaders.refresh()
            self._check_stall()
            return False
        self._requests[handle] = _Request(group, rows, spec, member, time.monotonic(), self._deadline.seconds, tried)
        self._stats.requests += 1
        return True

    def _members(self) -> tuple[str, ...]:
        """Return the live members, waiting for one if there is none."""
        while not (members := self._loaders.members()):
            self._last_fault = "no loader is alive"
            self._check_stall()
            time.sleep(_POLL_S)
            self._loaders.refresh()
        return members

    def _collect(self) -> None:
        """Take in what has arrived."""
        if not self._requests:
            time.sleep(_POLL_S / 10)
            return
        for handle in self._loaders.wait(list(self._requests), _POLL_S):
            request = self._requests.pop(handle)
            try:
                pixels = self._loaders.result(handle)
            except LoaderLost as error:
                self._reroute(request, error)
                continue
            self._learn(request, wanted=len(request.group.missing(request.rows)) > 0)
            bad = request.group.fill(request.rows, request.spec, pixels)
            self._loaders.release(handle)
            for sample in bad:
                self._stats.substituted += 1
                self._on_bad(sample)
                self._limit.add(sample)
            if bad:
                self._send(request.group, request.group.missing(request.rows[[b.row for b in pixels.bad]]))
            self._progress_s = time.monotonic()

    def _learn(self, request: _Request, *, wanted: bool) -> None:
        """Remember how long a request took; a member that was late is spared for a while that grows with it.

        How late an answer was is not what is usual: an answer that nobody waits for any more teaches nothing, and one
        that was late teaches no more than the deadline it missed, so that deadlines triple where all members are slow
        and stay short where one was frozen.
        """
        now = time.monotonic()
        took_s = now - request.sent_s
        if took_s > self._deadline.seconds:
            self._spared_until[request.member] = now + min(_SPARED_FOR * took_s, _LONGEST_SPARED_S)
        if wanted:
            self._deadline.add(min(took_s, request.deadline_s), member=request.member)

    def _reroute(self, request: _Request, error: LoaderLost) -> None:
        self._last_fault = str(error)
        self._loaders.refresh()
        rows = request.group.missing(request.rows)
        if len(rows):
            self._stats.rerouted += 1
            self._send(request.group, rows, (request.member,))

    def _hedge(self) -> None:
        """Ask another loader for what is overdue, once for every member there is."""
        now = time.monotonic()
        for request in list(self._requests.values()):
            if now - request.sent_s < self._deadline.seconds or len(rows := request.group.missing(request.rows)) == 0:
                continue
            tried = (*request.tried, request.member)
            if request.hedged or set(tried).issuperset(self._loaders.members()):
                continue
            request.hedged = True
            self._stats.hedged += 1
            self._last_fault = f"{request.member} owes {len(rows)} images for {now - request.sent_s:.1f} s"
            self._send(request.group, rows, tried)

    def _suspects(self) -> set[str]:
        """Return the members that owe an overdue answer, or gave one not long ago."""
        now = time.monotonic()
        limit = now - self._deadline.seconds
        owing = {request.member for request in self._requests.values() if request.sent_s < limit}
        return owing | {member for member, until in self._spared_until.items() if now < until}

    def _check_stall(self) -> None:
        if not self._groups:  # nothing is owed: the trainer rests, or is busy with something else
            self._progress_s = time.monotonic()
        waited = time.monotonic() - self._progress_s
        if waited < self._config.stall_timeout_s:
            return
        owing = sorted({request.member for request in self._requests.values()})
        if owing and isinstance(self._loaders, TellingPool):
            told = self._loaders.explain(owing)
            owing = [f"{member} (which waits for {told.get(member, 'an unknown reason')})" for member in owing]
        step = self._groups[0].steps.start if self._groups else self._next_step
        raise StreamStalled(
            f"no images for {waited:.0f} s at step {step}; waiting for {', '.join(owing) or 'nobody'}. "
            f"Last fault: {self._last_fault}. `tempera status` shows the loaders."
        )
