"""ControlState: which policy and how broad a draw is in force, folded from the log and from nothing else.

Three sources set the effective size: the configuration, then the schedule (the trainer's, or adaptive), then a person,
whose value holds until it is released. A policy holds until another is set. `ControlState.after` is the one place where
an entry takes effect; the live service, recovery and replay all use it. The checks below refuse a control's value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from scoring.config import CurriculumConfig, SelectionConfig
from scoring.policies import DIRECTION, SUBSET_KINDS, parse_policy
from scoring.records import CONTROL_KINDS, METRIC, SCHEDULE, TABLE_CHANGES, Control, LogEntry
from scoring.table.samples import SampleTable
from scoring.table.weights import WeightKey
from scoring.temperature import COLDEST, HOTTEST, checked_effective_size, checked_temperature

Value = float | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlState:
    """All that people and the trainer have set so far."""

    policy: str
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
        """Return the state of a new run."""
        curriculum = config.curriculum
        metric = curriculum.adaptive.metric if curriculum.adaptive else ""
        return ControlState(policy=curriculum.policy, scheduled=curriculum.start, metric=metric)

    def after(self, kind: str, value: Value, reason: str = "") -> ControlState:
        """Return the state after one log entry; most events change nothing, rounds and distances only the table."""
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
        """Return the state after these entries in turn."""
        state = self
        for entry in entries:
            state = state.after(entry.kind, entry.value, entry.reason)
        return state

    def next_scheduled(self, curriculum: CurriculumConfig, requested: float | None) -> float:
        """Return the scheduled effective size of the next window, given the trainer's request.

        Raises:
            ValueError: if the request is out of range, or was sent although the schedule is adaptive.
        """
        if curriculum.adaptive is None:
            return self.scheduled if requested is None else checked_effective_size(requested)
        if requested is not None:
            raise ValueError(
                "effective_size must not be sent with window requests of a run whose schedule is adaptive; got "
                f"{requested}. Leave it out."
            )
        return curriculum.adaptive.effective_size(self.metrics, start=curriculum.start, end=curriculum.end)

    def resolve(self, table: SampleTable, user_policies: Iterable[str]) -> WeightKey:
        """Solve for the temperature, or the effective size, that the state gives on this table.

        A product solves for its temperature over the samples of its subset, as if its other factors were uniform.

        Raises:
            ValueError: if the policy needs distances and there are none, or they cannot give the effective size.
        """
        plan, n = parse_policy(self.policy, user_policies), table.num_samples
        if plan.direction is None:
            uniform = 1.0 if n == 1 else -math.expm1(n * math.log1p(-1.0 / n))  # 1 - (1 - 1/N)^N
            size = {"uniform": 1.0, "uniform_replacement": uniform}.get(plan.name)
            return WeightKey(policy=plan.name, temperature=math.inf, effective_size=size)
        profile = table.profile(plan.subset_kinds)
        if profile is None:
            raise ValueError(f"policy {plan.name!r} needs prototype distances; this run has none. Run `tempera score`.")
        kind, value = self.manual or ("effective_size", self.scheduled)
        temperature = value if kind == "temperature" else profile.solve(value, plan.direction)
        if any(factor not in (*DIRECTION, *SUBSET_KINDS) for factor in plan.factors):
            size = None  # another factor narrows the draw further, by how much only the weights tell
        elif kind == "temperature" or temperature == math.inf:
            size = profile.effective_size(temperature, plan.direction)
        else:
            size = value
        return WeightKey(policy=plan.name, temperature=temperature, effective_size=size)


# -- checks of a control's value, by kind: (control, state, user's policies) -> value in its final type; ValueError ----


def check_number(control: Control, state: ControlState, user_policies: Iterable[str]) -> Value:
    """Return an effective size or a temperature that a policy in force can be solved for."""
    kind, value = control.kind, control.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{kind} must be a number; got {value!r}.")
    if parse_policy(state.policy, user_policies).direction is None:
        raise ValueError(
            f"{kind} needs a policy that has a temperature; got policy {state.policy!r}. Set the policy first."
        )
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if kind == "effective_size":
        return checked_effective_size(number)
    if not COLDEST <= checked_temperature(number) <= HOTTEST:
        raise ValueError(f"temperature must be in {COLDEST:g}..{HOTTEST:g}; got {number}. Try 0.07 to 0.6.")
    return number


def check_policy(control: Control, state: ControlState, user_policies: Iterable[str]) -> Value:
    """Return the name of a known policy, without spaces."""
    return parse_policy(str(control.value), user_policies).name


def check_release(control: Control, state: ControlState, user_policies: Iterable[str]) -> Value:
    """Return None: a release has no value."""
    if control.value is not None:
        raise ValueError(f"value must be empty for a release; got {control.value!r}.")
    return None


def check_round(control: Control, state: ControlState, user_policies: Iterable[str]) -> Value:
    """Return the score of a selection round."""
    if control.value not in SUBSET_KINDS:
        raise ValueError(f"round must name a score, one of {', '.join(SUBSET_KINDS)}; got {control.value!r}.")
    return control.value


def check_distances(control: Control, state: ControlState, user_policies: Iterable[str]) -> Value:
    """Return the path of a file of distances; its content is checked when it is read."""
    if not isinstance(control.value, str) or not control.value:
        raise ValueError(f"distances must name a file of `tempera score`; got {control.value!r}.")
    return control.value
