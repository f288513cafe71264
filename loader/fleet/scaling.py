"""When the fleet should grow or shrink: a policy, and a decision with its reason. Nothing here acts.

Trainers that wait need more loaders; loaders that idle while nobody waits are too many. Both have to last for several
observations, changes keep a distance in time, and the two thresholds are apart, so the size does not swing.
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
    """Grow when trainers wait for more than this share of their time."""
    busy_share: float = 0.5
    """Shrink when loaders work for less than this share of theirs and trainers hardly wait."""
    patience: int = 3
    """Observations in a row that must agree."""
    period_s: float = 5.0
    """Length of an observation, in seconds; what all trainers tell within it counts once."""
    cooldown_s: float = 30.0
    """Least time between two changes, in seconds: a new loader has to start and show its effect first."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"sizes must be 1 <= min_size <= max_size; got {self.min_size} and {self.max_size}")
        if not (0 < self.wait_share < 1 and 0 < self.busy_share < 1):
            raise ValueError(f"shares must be in (0, 1); got wait {self.wait_share} and busy {self.busy_share}")
        if self.patience < 1 or self.cooldown_s < 0 or self.period_s < 0:
            raise ValueError(f"patience must be at least 1, cooldown_s and period_s not negative; got {self}")


@dataclass(frozen=True, slots=True)
class ScaleTo:
    """Decision: wish for this many loaders."""

    size: int
    """Loaders."""
    reason: str
    """Why, for people."""


class Autoscaler:
    """Remembers recent observations and says when to change the size."""

    def __init__(self, policy: ScalePolicy) -> None:
        self.policy = policy
        self._hungry = self._idle = 0
        self._changed_s = float("-inf")

    def observe(self, *, size: int, wait_share: float, busy_share: float, now_s: float) -> ScaleTo | None:
        """Take in one observation.

        Args:
            size: Loaders wished for at the moment.
            wait_share: Share of their time that trainers waited since the last observation, in [0, 1].
            busy_share: Share of their time that loaders worked, in [0, 1].
            now_s: The time in seconds, on any clock that does not run back.

        Returns:
            A decision, or None to leave the size alone.
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
            reason = f"trainers wait for {wait_share:.0%} of their time, over {policy.wait_share:.0%}"
            return self._change(min(policy.max_size, size + max(1, size // 2)), reason, now_s)
        if self._idle >= policy.patience and size > policy.min_size:
            reason = f"loaders work for {busy_share:.0%} of their time, under {policy.busy_share:.0%}, and nobody waits"
            return self._change(size - 1, reason, now_s)
        return None

    def changed(self, now_s: float) -> None:
        """Start the distance in time anew: a person has set the size, and gets to see its effect."""
        self._hungry = self._idle = 0
        self._changed_s = now_s

    def _change(self, size: int, reason: str, now_s: float) -> ScaleTo:
        self.changed(now_s)
        return ScaleTo(size, reason)
