"""The plain values that go into and out of a selection: windows, controls, events, score acknowledgements, entries."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CONTROL_KINDS = ("effective_size", "temperature", "policy", "release", "round", "distances")
TABLE_CHANGES = ("round", "distances")
"""Controls that change the sample table; a replay applies them again in their order."""
TRAINER = "trainer"
"""Author of the scheduled effective size that travels with a window request."""
ADAPTIVE = "adaptive"
"""Author of an adaptive schedule's effective size."""
SCHEDULE = "schedule"
"""Log kind of a scheduled effective size."""
TAKEN_KINDS = (*CONTROL_KINDS, SCHEDULE)
"""Log kinds that an event must not have."""
METRIC = "metric"
"""Event kind by which trainers report what an adaptive schedule follows; the message names the metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFacts:
    """Everything about a window but its draws; with the data and the log, enough to draw it again."""

    index: int
    """Number of the window; it covers steps [index * window_steps, (index + 1) * window_steps)."""
    version: int
    """Version of the weight table that it was drawn from."""
    first_draw: int
    """Global number of its first draw."""
    policy: str
    """Policy in force."""
    temperature: float
    """Temperature in force; infinity for a policy that has none."""
    effective_size: float
    """Expected share of distinct samples in N draws from the table; 1 for a permutation."""
    num_draws: int
    """Draws, spares not counted."""
    num_spares: int
    """Spare draws."""
    scores_through: int = 0
    """Log sequence of the last score report that the weights read; 0 where they read none."""
    rounds_through: int = 0
    """Log sequence of the last change of the table (a round, other distances) that the weights read; 0 for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The draws of `window_steps` optimizer steps, all from one weight table. Arrays are read-only."""

    index: int
    """Number of the window; it covers steps [index * window_steps, (index + 1) * window_steps)."""
    version: int
    """Version of the weight table that it was drawn from."""
    first_draw: int
    """Global number of its first draw."""
    sample_ids: NDArray[np.int64]
    """[window_steps * global_batch] in order of use."""
    probability: NDArray[np.float64]
    """Probability of each draw under the table."""
    spare_ids: NDArray[np.int64]
    """Further draws from the same table, in order, for samples that turn out to be bad."""
    spare_probability: NDArray[np.float64]
    """Probability of each spare."""
    policy: str
    """Policy in force."""
    temperature: float
    """Temperature in force; infinity for a policy that has none."""
    effective_size: float
    """Expected share of distinct samples in N draws from the table; 1 for a permutation."""
    digest: str
    """Hex digest of the sample ids in order. Probabilities are left out, for their rounding differs between
    processors."""

    @staticmethod
    def sealed(facts: WindowFacts, ids: NDArray[np.int64], probability: NDArray[np.float64]) -> Window:
        """Return the window of these facts and draws, the spares last, with its digest."""
        ids, probability = np.ascontiguousarray(ids), np.ascontiguousarray(probability)
        ids.setflags(write=False)
        probability.setflags(write=False)
        head = f"{facts.index} {facts.version} {facts.first_draw} {facts.num_draws} {facts.num_spares} {facts.policy}"
        digest = hashlib.blake2b(head.encode(), digest_size=16)
        # In one byte order, so that machines agree.
        digest.update(ids.astype("<i8", copy=False).data)
        cut = facts.num_draws
        return Window(
            index=facts.index,
            version=facts.version,
            first_draw=facts.first_draw,
            sample_ids=ids[:cut],
            probability=probability[:cut],
            spare_ids=ids[cut:],
            spare_probability=probability[cut:],
            policy=facts.policy,
            temperature=facts.temperature,
            effective_size=facts.effective_size,
            digest=digest.hexdigest(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """A change of what is drawn next, by a person or, for rounds, by the trainer."""

    kind: str
    """One of CONTROL_KINDS. "release" gives the effective size back to the schedule; "round" closes a selection round:
    the policy of that name keeps floor(rho * N) samples by score from then on; "distances" replaces the distances."""
    value: float | str | None = None
    """Effective size (share of N), temperature, policy name, score of a round, or path of a file of `Prototypes.save`,
    which must stay in place; None for a release."""
    author: str
    """Name of the person or program; goes to the log."""
    reason: str = ""
    """Reason, for people; goes to the log."""
    expected_version: int | None = None
    """Control version that the author has seen; the change is refused if another came since. None: do not compare."""
    request: str = ""
    """Identity of this change: sent twice it is applied once and answered alike. Empty: no identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlReply:
    """The effect of a control."""

    version: int
    """Control version after the change."""
    window: int
    """First window that is drawn under it."""
    step: int
    """First optimizer step of that window."""
    effective_size: float | None
    """Effective size in force then, unless the schedule changes it; None where only later weights give it."""
    temperature: float | None
    """Temperature in force then; None for infinity, as without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """An occurrence that belongs in the run's history: scaling, a lost loader, a bad sample, a metric."""

    kind: str
    """One word."""
    author: str
    """Name of the person or program that caused it."""
    message: str = ""
    """One line for a person."""
    value: float | str | None = None
    """Value of a setting or a metric."""
    request: str = ""
    """Identity of this event: sent twice it is written once. Empty: no identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreAck:
    """Answer to a score report; the accepted scores are on disk."""

    accepted: int
    """Number of scores accepted."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Number of scores refused, by reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """One line of the run's history."""

    sequence: int
    """Position in the log."""
    time: float
    """Seconds since the epoch."""
    author: str
    """Name of the person or program; "trainer" for the schedule."""
    kind: str
    """A control kind, or an event's."""
    value: float | str | None
    """Value of the control or event."""
    reason: str
    """Reason of a control, or an event's message."""
    window: int
    """First window under it; for an event the next window at that time."""
    step: int
    """First optimizer step of that window."""
    version: int
    """Control version after it."""
    temperature: float | None
    """Temperature in force from that window on; None for an event."""
    effective_size: float | None
    """Effective size in force from that window on; None for an event."""
    in_force: bool
    """False for a scheduled value recorded while a person's holds."""
    request: str = ""
    """Identity of the control, if it had one."""
    detail: str = ""
    """JSON: the cutoff of a round (threshold, last_id, kept, scores_through), the file of distances (path, digest,
    scores_through). Empty for others."""

    def reply(self) -> ControlReply:
        """Return the answer to the control of this entry."""
        temperature = self.temperature
        return ControlReply(
            version=self.version,
            window=self.window,
            step=self.step,
            effective_size=self.effective_size,
            temperature=None if temperature is None or math.isinf(temperature) else temperature,
        )
