"""Controls: which policy and how broad a draw is in force, folded from the log and from nothing else.

Three voices set the effective size: the configuration, then the trainer's schedule, then a person, whose value holds
until it is released. A policy holds until another is set. `ControlState.after` is the one place where an entry takes
effect; the live service, recovery and replay all use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scoring.policies import PolicyPlan, parse_policy
from scoring.records import CONTROL_KINDS, TRAINER, Control, LogEntry
from scoring.temperature import DistanceProfile, checked_effective_size, checked_temperature

SCHEDULE = "schedule"
"""Log kind of the trainer's scheduled effective size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlState:
    """What people and the trainer have asked for so far."""

    policy: str
    """Policy in force."""
    scheduled: float
    """Effective size last scheduled by the trainer, or configured."""
    manual: tuple[str, float] | None = None
    """("effective_size" | "temperature", value) held by a person."""
    version: int = 0
    """Number of controls by people so far."""

    def after(self, kind: str, value: float | str | None) -> ControlState:
        """The state after one log entry; events change nothing."""
        if kind == SCHEDULE:
            return replace(self, scheduled=float(value or 0.0))
        if kind not in CONTROL_KINDS:
            return self
        advanced = replace(self, version=self.version + 1)
        if kind == "policy":
            return replace(advanced, policy=str(value))
        return replace(advanced, manual=None if kind == "release" else (kind, float(value or 0.0)))

    def after_all(self, entries: list[LogEntry]) -> ControlState:
        """The state after these entries in turn."""
        state = self
        for entry in entries:
            state = state.after(entry.kind, entry.value)
        return state


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A control state turned into what a table needs."""

    plan: PolicyPlan
    """The policy."""
    temperature: float
    """Its temperature; infinity for a policy without one."""
    effective_size: float | None
    """Its effective size; None where only the weights tell."""


def resolve(state: ControlState, profile: DistanceProfile | None, num_samples: int) -> Resolved:
    """Policy, temperature and effective size of a state.

    Raises:
        ValueError: if the policy needs distances and there are none, or they cannot give the effective size.
    """
    plan = parse_policy(state.policy)
    if plan.direction is None:
        size = {"uniform": 1.0, "uniform_replacement": _uniform_size(num_samples)}.get(plan.name)
        return Resolved(plan=plan, temperature=math.inf, effective_size=size)
    if profile is None:
        raise ValueError(f"policy {plan.name!r} needs prototype distances; this run has none. Run `tempera score`.")
    kind, value = state.manual or ("effective_size", state.scheduled)
    if kind == "temperature":
        return Resolved(plan=plan, temperature=value, effective_size=profile.effective_size(value, plan.direction))
    return Resolved(plan=plan, temperature=profile.solve(value, plan.direction), effective_size=value)


def checked_control(control: Control, state: ControlState) -> float | str | None:
    """The control's value in its final type.

    Raises:
        ValueError: naming the field that is wrong.
    """
    if control.kind not in CONTROL_KINDS:
        raise ValueError(f"kind must be one of {', '.join(CONTROL_KINDS)}; got {control.kind!r}.")
    if not control.author or control.author == TRAINER:
        raise ValueError(f"author must name a person or a program, and not be {TRAINER!r}; got {control.author!r}.")
    if control.kind == "policy":
        return parse_policy(str(control.value)).name
    if control.kind == "release":
        if control.value is not None:
            raise ValueError(f"value must be empty for a release; got {control.value!r}.")
        return None
    if isinstance(control.value, bool) or not isinstance(control.value, (int, float)):
        raise ValueError(f"{control.kind} must be a number; got {control.value!r}.")
    if parse_policy(state.policy).direction is None:
        raise ValueError(
            f"{control.kind} needs a policy that has a temperature; got policy {state.policy!r}. Set the policy first."
        )
    check = checked_effective_size if control.kind == "effective_size" else checked_temperature
    return check(control.value)


def _uniform_size(num_samples: int) -> float:
    """Effective size of uniform draws with replacement: 1 - (1 - 1/N)^N."""
    return 1.0 if num_samples == 1 else -math.expm1(num_samples * math.log1p(-1.0 / num_samples))
