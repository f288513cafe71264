"""Turns windows into finished batches: plans groups, sends requests, and deals with every fault on the way.

All faults have the same cure, because a spec is a value: ask another loader. The rows of a lost loader go to their next
choice in rendezvous order at once. A request past its deadline is sent to the next choice as well; the first answer
counts and the other is dropped. Loaders that owe an overdue answer get no new work until they give it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loader.batch import BadSample, Batch, BatchSpec
from loader.batches.groups import Group
from loader.batches.next_use import cache_hints
from loader.batches.routing import Deadline, route
from loader.batches.substitution import BadSampleLimit
from loader.batches.windows import WindowFetcher
from loader.config import StreamConfig
from loader.decode.buffers import ImageBuffers
from loader.errors import LoaderLost, StreamStalled
from loader.pool import Handle, LoaderPool

_SPARED_FACTOR = 10.0
_MAX_SPARED_S = 30.0
"""A member that answered late gets no work for ten times as long as it took: a straggler costs a tenth of a wait."""
_POLL_S = 0.05
"""Longest wait before deadlines and the members are checked again."""


@dataclass(slots=True)
class StreamStats:
    """Totals of a stream since it was made."""

    images: int = 0
    """Delivered to the trainer."""
    requests: int = 0
    """Sent to loaders."""
    hedged: int = 0
    """Requests sent to a second loader because the first was late."""
    rerouted: int = 0
    """Requests sent to another loader because the first was lost."""
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
    """Age at which it is late, as the deadline was when it was sent."""
    tried: tuple[str, ...]
    """Members that these rows were requested from before."""
    hedged: bool = False
    """The rows were sent to another member as well."""


class Assembler:
    """Makes the batches of one rank, from a given step on.

    At most one window beyond the steps that the trainer has taken, which `delivered` returns, is planned.
    """

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
        self._buffers = ImageBuffers()
        self._hints: NDArray[np.float64] = np.zeros(0)
        self._hints_of: tuple[int, bool] | None = None
        """The window that the hints are for, and whether the window after it was known."""
        self._requests: dict[Handle, _Request] = {}
        self._deadline = Deadline(least_s=config.request_deadline_s)
        self._spared_until: dict[str, float] = {}
        self._limit = BadSampleLimit(config.max_bad_share)
        self._progress_s = time.monotonic()
        self._last_fault = "none"

    def batches(self) -> Generator[Batch | None, None, None]:
        """Yield every batch from the first step to the last, and None after each wait that brought no batch.

        Raises:
            StreamStalled: Nothing arrived within the stall timeout.
            TooManyBadSamplesError: The share of bad samples is over its limit.
            LoaderError: A loader or the window source failed in a way that another loader cannot cure.
        """
        try:
            while self._groups or self._next_step < self._config.total_steps:
                self._plan()
                # Only the oldest group: batches leave in step order, whichever replies come first.
                if self._groups and self._groups[0].done:
                    yield from self._groups.popleft().batches()
                    self._progress_s = time.monotonic()
                    continue
                self._collect()
                self._hedge()
                self._check_stall()
                yield None
        finally:
            # The stream ends early or late: the memory of what is in flight goes back to the pool.
            for handle in self._requests:
                self._loaders.release(handle)

    def _plan(self) -> None:
        """Send groups until enough steps are in flight, but never plan more than one window ahead of the trainer."""
        config = self._config
        # The steps that together give each loader a request worth sending.
        wanted = config.min_request_images * max(1, len(self._loaders.members()))
        worthwhile = -(-wanted // config.local_batch)
        # Twice as many in flight, as far as memory allows: loaders work on one group while the other is collected.
        step_bytes = 3 * config.transform.size**2 * config.local_batch
        allowed = min(2 * config.window_steps, config.prefetch_bytes // step_bytes)
        prefetch_steps = max(config.prefetch_steps, min(2 * worthwhile, allowed))
        group_steps = max(1, min(worthwhile, prefetch_steps // 2))
        in_flight = sum(len(group.steps) for group in self._groups)
        while self._next_step < config.total_steps and in_flight < prefetch_steps:
            # Windows are drawn when they are asked for, so looking further ahead would delay every change of the draw.
            window = self._next_step // config.window_steps
            furthest = self._delivered() // config.window_steps + 1
            if window > furthest:
                return
            # A group never reaches over a window's end: its draws come from one window.
            window_end = min((window + 1) * config.window_steps, config.total_steps)
            steps = range(self._next_step, min(self._next_step + group_steps, window_end))
            draws = self._windows.get(window)
            # A hint is not worth a wait: the next window counts once it is here. Many groups share the hints of one.
            following = self._windows.peek(window + 1)
            if self._hints_of != (window, following is not None):
                self._hints, self._hints_of = cache_hints(draws, following), (window, following is not None)
            group = Group(draws, steps, config, hints=self._hints, buffers=self._buffers)
            self._next_step = steps.stop
            in_flight += len(steps)
            if steps.stop + prefetch_steps > window_end and window < furthest:
                self._windows.prefetch(window + 1)
            self._groups.append(group)
            self._limit.planned(len(group))
            self._send(group, np.arange(len(group)))

    def _send(self, group: Group, rows: NDArray[np.int64], tried: tuple[str, ...] = ()) -> None:
        """Request rows, each from its first choice among the members not tried and not overdue."""
        pending = rows
        while len(pending):
            while not (members := self._loaders.members()):
                self._last_fault = "no loader is alive"
                self._check_stall()
                time.sleep(_POLL_S)
            avoid = {*tried, *self._suspects()}
            if avoid.issuperset(members):
                avoid = set(tried)  # a late member is a better choice than one that just failed these rows
            # By the ids as they stand now: a substitute is routed by its own id, to the loader that may have it cached.
            choice = route(group.spec(pending).sample_ids, members, avoid=avoid)
            unsent = []
            for number in np.unique(choice):
                part, member = pending[choice == number], members[number]
                spec = group.spec(part)
                try:
                    handle = self._loaders.submit(member, spec)
                except LoaderLost as error:
                    # It has just left: its rows are routed again, among the members that are there then.
                    self._last_fault = str(error)
                    self._check_stall()
                    unsent.append(part)
                    continue
                now, deadline_s = time.monotonic(), self._deadline.seconds
                self._requests[handle] = _Request(group, part, spec, member, now, deadline_s, tried)
                self._stats.requests += 1
            pending = np.concatenate(unsent) if unsent else pending[:0]

    def _collect(self) -> None:
        """Copy the replies that have arrived into their groups; send what was lost or bad again."""
        if not self._requests:
            # The trainer has all that it may have; it takes a batch any moment.
            time.sleep(_POLL_S / 10)
            return
        for handle in self._loaders.wait(list(self._requests), _POLL_S):
            request = self._requests.pop(handle)
            try:
                pixels = self._loaders.result(handle)
            except LoaderLost as error:
                self._reroute(request, error)
                continue
            now = time.monotonic()
            took_s = now - request.sent_s
            if took_s > self._deadline.seconds:
                self._spared_until[request.member] = now + min(_SPARED_FACTOR * took_s, _MAX_SPARED_S)
            # A late answer says little about usual times. One whose rows have come from elsewhere counts nothing, and
            # another no more than the deadline it missed: deadlines triple where all members are slow, and stay short
            # where one was frozen.
            if len(request.group.missing(request.rows)):
                self._deadline.add(min(took_s, request.deadline_s), member=request.member)
            bad = request.group.fill(request.rows, request.spec, pixels)
            self._loaders.release(handle)  # its pixels are copied
            for sample in bad:
                self._stats.substituted += 1
                self._on_bad(sample)
                self._limit.add(sample)
            if bad:
                self._send(request.group, request.group.missing(request.rows[[b.row for b in pixels.bad]]))
            self._progress_s = time.monotonic()

    def _reroute(self, request: _Request, error: LoaderLost) -> None:
        """Request the rows of a lost loader from others."""
        self._last_fault = str(error)
        rows = request.group.missing(request.rows)
        if len(rows):
            self._stats.rerouted += 1
            self._send(request.group, rows, (request.member,))

    def _hedge(self) -> None:
        """Send overdue requests to another loader as well (Dean and Barroso, 2013), once to every member there is."""
        now = time.monotonic()
        for request in list(self._requests.values()):
            rows, age_s = request.group.missing(request.rows), now - request.sent_s
            if request.hedged or not len(rows) or age_s < self._deadline.seconds:
                continue
            # Names are compared, not counted: of a fleet that shrank, fewer members may be left than were asked.
            tried = (*request.tried, request.member)
            if set(tried).issuperset(self._loaders.members()):
                continue
            request.hedged = True
            self._stats.hedged += 1
            self._last_fault = f"{request.member} owes {len(rows)} images for {age_s:.1f} s"
            self._send(request.group, rows, tried)

    def _suspects(self) -> set[str]:
        """Return the members that owe an overdue answer, or gave one not long ago."""
        now = time.monotonic()
        limit = now - self._deadline.seconds
        owing = {request.member for request in self._requests.values() if request.sent_s < limit}
        return owing | {member for member, until in self._spared_until.items() if now < until}

    def _check_stall(self) -> None:
        """Raise StreamStalled when nothing has arrived for the stall timeout; name the loaders and why."""
        if not self._groups:  # nothing is owed: the trainer has all it may have for now
            self._progress_s = time.monotonic()
        waited = time.monotonic() - self._progress_s
        if waited < self._config.stall_timeout_s:
            return
        owing = sorted({request.member for request in self._requests.values()})
        reasons = self._loaders.explain(owing) if owing else {}
        named = [f"{member} (which waits for {reasons.get(member, 'an unknown reason')})" for member in owing]
        step = self._groups[0].steps.start if self._groups else self._next_step
        raise StreamStalled(
            f"no images for {waited:.0f} s at step {step}; waiting for {', '.join(named) or 'nobody'}. "
            f"Last fault: {self._last_fault}. `tempera status` shows the loaders."
        )
