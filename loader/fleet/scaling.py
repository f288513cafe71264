"""When the fleet should grow or shrink: a policy, and decisions with their reason. `supervisor` carries them out.

Loaders are added while trainers wait and removed while loaders idle and trainers do not wait. Both must last for
several observations, changes are a cooldown apart, and the two thresholds differ, so that the size does not swing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePolicy:
    """Bounds and thresholds of automatic scaling."""

    min_size: int = 1
    max_size: int = 16
    wait_share: float = 0.05
    """Grow when trainers wait for more than this share of their time, in (0, 1)."""
    busy_share: float = 0.5
    """Shrink when loaders work for less than this share of their time and trainers hardly wait, in (0, 1)."""
    patience: int = 3
    """Observations in a row that must agree."""
    period_s: float = 5.0
    """Length of an observation, in seconds; reports of all trainers within it count once."""
    cooldown_s: float = 30.0
    """Least time between two changes, in seconds: a new loader must start and show its effect first."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"sizes must be 1 <= min_size <= max_size; got {self.min_size} and {self.max_size}")
        if not (0 < self.wait_share < 1 and 0 < self.busy_share < 1):
            raise ValueError(f"shares must be in (0, 1); got wait {self.wait_share} and busy {self.busy_share}")
        if self.patience < 1 or self.cooldown_s < 0 or self.period_s < 0:
            raise ValueError(f"patience must be at least 1, cooldown_s and period_s not negative; got {self}")


@dataclass(frozen=True, slots=True)
class ScaleTo:
    """Decision: change the desired size."""

    size: int
    reason: str


class Autoscaler:
    """Collects trainers' reports into observations, counts those that agree, and decides when to change the size.

    The first period begins at `started_s`, on the clock of the calls below.
    """

    def __init__(self, policy: ScalePolicy, *, started_s: float) -> None:
        self._policy = policy
        self._waits: list[float] = []
        self._observed_s = started_s
        self._worked: dict[str, tuple[float, float]] = {}
        """Loader -> its decode_s and uptime_s at the last observation."""
        self._hungry = self._idle = 0
        self._changed_s = float("-inf")

    def report(
        self, wait_share: float, loaders: Mapping[str, Mapping[str, Any]], *, size: int, now_s: float
    ) -> ScaleTo | None:
        """Add a trainer's report, and return a decision when a period is over and the policy asks for one.

        Args:
            wait_share: Share of its time that the trainer waited since its last report, in [0, 1].
            loaders: By name, decode_s and uptime_s in seconds since the loader's start; empty until it has answered.
            size: Desired loaders at the moment.
            now_s: The time in seconds, on any clock that does not run back.
        """
        self._waits.append(wait_share)
        if now_s - self._observed_s < self._policy.period_s:
            return None
        # Ranks compute in step: the one that waits longest holds up the others.
        longest, self._waits, self._observed_s = max(self._waits), [], now_s
        # Loaders count since their start, so the share of a period is a difference of two answers. A loader that was
        # replaced meanwhile counts from 0 again, and one that gave no new answer has no difference: both are left out.
        before, self._worked = self._worked, {}
        shares = []
        for name, info in loaders.items():
            if "uptime_s" in info:
                worked_s, uptime_s = self._worked[name] = (info["decode_s"], info["uptime_s"])
                worked_before_s, uptime_before_s = before.get(name, (0.0, 0.0))
                if uptime_s > uptime_before_s:
                    shares.append((worked_s - worked_before_s) / (uptime_s - uptime_before_s))
        # With no answers loaders count as busy: a fleet must not shrink because its loaders are silent.
        busy_share = min(1.0, sum(shares) / len(shares)) if shares else 1.0
        return self.observe(size=size, wait_share=longest, busy_share=busy_share, now_s=now_s)

    def observe(self, *, size: int, wait_share: float, busy_share: float, now_s: float) -> ScaleTo | None:
        """Add one observation, and return a decision, or None to leave the size as it is.

        The shares, in [0, 1], are of the time since the last one: for which trainers waited, and loaders worked.
        """
        policy = self._policy
        hungry = wait_share > policy.wait_share
        # Half the threshold: removing a loader must not at once make trainers wait again.
        idle = wait_share < policy.wait_share / 2 and busy_share < policy.busy_share
        self._hungry = self._hungry + 1 if hungry else 0
        self._idle = self._idle + 1 if idle else 0
        if now_s - self._changed_s < policy.cooldown_s:  # but the counts go on: what lasts is acted on right after it
            return None
        if self._hungry >= policy.patience and size < policy.max_size:
            # Half as many again: a fleet far too small catches up in a few steps.
            grown = min(policy.max_size, size + max(1, size // 2))
            decision = ScaleTo(grown, f"trainers wait for {wait_share:.0%} of their time, over {policy.wait_share:.0%}")
        elif self._idle >= policy.patience and size > policy.min_size:
            reason = f"loaders work for {busy_share:.0%} of their time, under {policy.busy_share:.0%}, and nobody waits"
            decision = ScaleTo(size - 1, reason)  # one at a time: too few loaders cost more than one too many
        else:
            return None
        self.restart_cooldown(now_s)
        return decision

    def restart_cooldown(self, now_s: float) -> None:
        """Wait for the cooldown from now on. Called as well when a person sets the size, to see its effect first."""
        self._hungry = self._idle = 0
        self._changed_s = now_s
