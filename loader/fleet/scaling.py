"""When the fleet should grow or shrink: a policy, and decisions with their reason. `supervisor` carries them out.

Loaders are added while trainers wait and removed while loaders idle and trainers do not wait. Both must last for
several observations, changes are a cooldown apart, and the two thresholds differ, so that the size does not swing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePolicy:
    """Bounds and thresholds of automatic scaling."""

    min_size: int = 1
    """Fewest loaders."""
    max_size: int = 16
    """Most loaders."""
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
    """Loaders."""
    reason: str
    """Why, for people."""


class Autoscaler:
    """Counts observations that agree, and decides when to change the size."""

    def __init__(self, policy: ScalePolicy) -> None:
        self.policy = policy
        self._hungry = self._idle = 0
        self._changed_s = float("-inf")

    def observe(self, *, size: int, wait_share: float, busy_share: float, now_s: float) -> ScaleTo | None:
        """Add one observation, and return a decision, or None to leave the size as it is.

        Args:
            size: Desired loaders at the moment.
            wait_share: Share of their time that trainers waited since the last observation, in [0, 1].
            busy_share: Share of their time that loaders worked, in [0, 1].
            now_s: The time in seconds, on any clock that does not run back.
        """
        policy = self.policy
        hungry = wait_share > policy.wait_share
        # Half the threshold: removing a loader must not at once make trainers wait again.
        idle = wait_share < policy.wait_share / 2 and busy_share < policy.busy_share
        self._hungry = self._hungry + 1 if hungry else 0
        self._idle = self._idle + 1 if idle else 0
        if now_s - self._changed_s < policy.cooldown_s:
            return None
        if self._hungry >= policy.patience and size < policy.max_size:
            # Half as many again: a fleet far too small catches up in a few steps.
            grown = min(policy.max_size, size + max(1, size // 2))
            decision = ScaleTo(grown, f"trainers wait for {wait_share:.0%} of their time, over {policy.wait_share:.0%}")
        elif self._idle >= policy.patience and size > policy.min_size:
            reason = f"loaders work for {busy_share:.0%} of their time, under {policy.busy_share:.0%}, and nobody waits"
            decision = ScaleTo(size - 1, reason)
        else:
            return None
        self.restart_cooldown(now_s)
        return decision

    def restart_cooldown(self, now_s: float) -> None:
        """Wait for the cooldown from now on. Called as well when a person sets the size, to see its effect first."""
        self._hungry = self._idle = 0
        self._changed_s = now_s
