"""Controls: which policy and how broad a draw is in force, folded from the log and from nothing else.

Three voices set the effective size: the configuration, then the schedule (of the trainer, or adaptive), then a person,
whose value holds until it is released. A policy holds until another is set. `ControlState.after` is the one place where
an entry takes effect; the live service, recovery and replay all use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from scoring.config import SelectionConfig
from scoring.policies import DIRECTION, SUBSET_KINDS, PolicyPlan, parse_policy
from scoring.records import CONTROL_KINDS, METRIC, SCHEDULE, TABLE_CHANGES, TRAINER, Control, LogEntry
from scoring.table.samples import SampleTable
from scoring.temperature import COLDEST, HOTTEST, DistanceProfile, checked_effective_size, checked_temperature


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlState:
    """What people and the trainer have asked for so far."""

    policy: str
    """Policy in force."""
    scheduled: float
    """Effective size last scheduled, or configured."""
    manual: tuple[str, float] | None = None
    """("effective_size" | "temperature", value) held by a person."""
    version: int = 0
    """Number of controls so far; the schedule does not count."""
    metric: str = ""
    """Metric that an adaptive schedule follows."""
    metrics: tuple[float, ...] = ()
    """Its reports so far."""

    @staticmethod
    def initial(config: SelectionConfig) -> ControlState:
        """The state of a new run."""
        curriculum = config.curriculum
        metric = curriculum.adaptive.metric if curriculum.adaptive else ""
        return ControlState(policy=curriculum.policy, scheduled=curriculum.start, metric=metric)

    def after(self, kind: str, value: float | str | None, reason: str = "") -> ControlState:
        """The state after one log entry; events change nothing, and some change the table, not this."""
        if kind == SCHEDULE:
            return replace(self, scheduled=float(value or 0.0))
        if kind == METRIC and reason == self.metric:
            return replace(self, metrics=(*self.metrics, float(value or 0.0)))
        if kind not in CONTROL_KINDS:
            return self
        advanced = replace(self, version=self.version + 1)
        if kind == "policy":
            return replace(advanced, policy=str(value))
        if kind in TABLE_CHANGES:
            return advanced
        return replace(advanced, manual=None if kind == "release" else (kind, float(value or 0.0)))

    def after_all(self, entries: Iterable[LogEntry]) -> ControlState:
        """The state after these entries in turn."""
        state = self
        for entry in entries:
            state = state.after(entry.kind, entry.value, entry.reason)
        return state


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A control state turned into what a weight table needs."""

    plan: PolicyPlan
    """The policy."""
    temperature: float
    """Its temperature; infinity for a policy without one."""
    effective_size: float | None
    """Its effective size; None where only the weights tell."""


class Resolver:
    """Turns control states into laws; keeps the grouped distances, which are costly, by subset."""

    def __init__(self, table: SampleTable, config: SelectionConfig) -> None:
        self._table, self._user_policies = table, config.curriculum.user_policies
        self._profiles: dict[tuple[str, ...], DistanceProfile | None] = {}

    def forget(self) -> None:
        """After a change of the table: subsets have other members, or samples other distances."""
        self._profiles.clear()

    def plan(self, policy: str) -> PolicyPlan:
        """The policy taken apart; ValueError if it is not known."""
        return parse_policy(policy, self._user_policies)

    def resolve(self, state: ControlState) -> Resolved:
        """Policy, temperature and effective size of a state.

        A product solves for its temperature over the samples of its subset, as if its other factors were uniform.

        Raises:
            ValueError: if the policy needs distances and there are none, or they cannot give the effective size.
        """
        plan = self.plan(state.policy)
        if plan.direction is None:
            size = {"uniform": 1.0, "uniform_replacement": self._uniform_size()}.get(plan.name)
            return Resolved(plan=plan, temperature=math.inf, effective_size=size)
        profile = self._profile(plan)
        kind, value = state.manual or ("effective_size", state.scheduled)
        temperature = value if kind == "temperature" else profile.solve(value, plan.direction)
        alone = all(factor in (*DIRECTION, *SUBSET_KINDS) for factor in plan.factors)
        if not alone:
            size = None
        elif kind == "temperature" or temperature == math.inf:
            size = profile.effective_size(temperature, plan.direction)
        else:
            size = value
        return Resolved(plan=plan, temperature=temperature, effective_size=size)

    def _profile(self, plan: PolicyPlan) -> DistanceProfile:
        kinds = plan.subset_kinds
        if kinds not in self._profiles:
            self._profiles[kinds] = self._table.profile(kinds)
        profile = self._profiles[kinds]
        if profile is None:
            raise ValueError(f"policy {plan.name!r} needs prototype distances; this run has none. Run `tempera score`.")
        return profile

    def _uniform_size(self) -> float:
        """Effective size of uniform draws with replacement: 1 - (1 - 1/N)^N."""
        size = self._table.num_samples
        return 1.0 if size == 1 else -math.expm1(size * math.log1p(-1.0 / size))


def checked_control(control: Control, state: ControlState, resolver: Resolver) -> float | str | None:
    """The control's value in its final type.

    Raises:
        ValueError: naming the field that is wrong.
    """
    if control.kind not in CONTROL_KINDS:
        raise ValueError(f"kind must be one of {', '.join(CONTROL_KINDS)}; got {control.kind!r}.")
    if not control.author or (control.author == TRAINER and control.kind != "round"):
        raise ValueError(f"author must name a person or a program, and not be {TRAINER!r}; got {control.author!r}.")
    if control.kind == "policy":
        return resolver.plan(str(control.value)).name
    if control.kind == "round":
        if control.value not in SUBSET_KINDS:
            raise ValueError(f"round must name a score, one of {', '.join(SUBSET_KINDS)}; got {control.value!r}.")
        return control.value
    if control.kind == "distances":
        if not isinstance(control.value, str) or not control.value:
            raise ValueError(f"distances must name a file of `tempera score`; got {control.value!r}.")
        return control.value
    if control.kind == "release":
        if control.value is not None:
            raise ValueError(f"value must be empty for a release; got {control.value!r}.")
        return None
    if isinstance(control.value, bool) or not isinstance(control.value, int | float):
        raise ValueError(f"{control.kind} must be a number; got {control.value!r}.")
    if resolver.plan(state.policy).direction is None:
        raise ValueError(
            f"{control.kind} needs a policy that has a temperature; got policy {state.policy!r}. Set the policy first."
        )
    return _checked_number(control.kind, control.value)


def _checked_number(kind: str, value: float) -> float:
    """An effective size or a temperature that a law can be solved for."""
    if kind == "effective_size":
        return checked_effective_size(_as_float(value))
    temperature = checked_temperature(_as_float(value))
    if not COLDEST <= temperature <= HOTTEST:
        raise ValueError(f"temperature must be in {COLDEST:g}..{HOTTEST:g}; got {temperature}. Try 0.07 to 0.6.")
    return temperature


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond every float
        return math.inf
