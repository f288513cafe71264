"""CurriculumConfig: the knobs of what is drawn. SelectionConfig: these, and the facts of the run that they apply to.

A run nests a CurriculumConfig in its own configuration and derives the rest, so that each knob is declared once.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.policies import PolicyOptions, parse_policy
from scoring.schedules import SCHEDULES, AdaptiveGrowth, Schedule
from scoring.temperature import checked_effective_size

ADAPTIVE = "adaptive"
"""Name of the schedule that follows a metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Which samples are preferred, and how the effective size of the data set changes over training."""

    policy: str = "prototypical"
    """Policy at the start: a name of `scoring.POLICIES` or of `user_policies`, or names joined by "*"."""
    user_policies: tuple[str, ...] = ()
    """Import paths ("package.module:function") that `policy` and later controls may name beside POLICIES."""
    options: PolicyOptions = field(default_factory=PolicyOptions)
    """Constants of the policies."""
    schedule: str = "cosine"
    """A name in `scoring.SCHEDULES`, effective size by progress; or adaptive, effective size by a reported metric."""
    start: float = 0.20
    """Effective size at the first step, a share of N in (0, 1 - 1/e] (the paper's temperature .07)."""
    end: float = 0.61
    """Effective size at the last step, a share of N in (0, 1 - 1/e] (the paper's temperature .6)."""
    growth: AdaptiveGrowth = field(default_factory=AdaptiveGrowth)
    """Rule of the adaptive schedule."""
    spare_fraction: float = 0.01
    """Spare draws of each window as a share of its draws, in [0, 1]; a window has at least one spare."""

    def __post_init__(self) -> None:
        names = (*SCHEDULES, ADAPTIVE)
        if self.schedule not in names:
            near = difflib.get_close_matches(self.schedule, names, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"curriculum.schedule must be one of {', '.join(names)}; got {self.schedule!r}.{hint}")
        if not 0.0 <= self.spare_fraction <= 1.0:
            raise ValueError(f"spare_fraction must be in [0, 1]; got {self.spare_fraction}.")
        checked_effective_size(self.start)
        self.schedule_by_progress()
        if self.adaptive and self.start > checked_effective_size(self.end):
            raise ValueError(f"end must be at least start ({self.start}); got {self.end}.")
        parse_policy(self.policy, self.user_policies)

    @property
    def adaptive(self) -> AdaptiveGrowth | None:
        """Rule by which reported metrics change the effective size; None for a schedule by progress."""
        return self.growth if self.schedule == ADAPTIVE else None

    def schedule_by_progress(self) -> Schedule:
        """Return the effective size as a function of progress in [0, 1]; constant at `start` for an adaptive run."""
        return SCHEDULES["fixed" if self.adaptive else self.schedule](start=self.start, end=self.end)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """Configuration of one run's selection. A run log opens only with the configuration it was begun with."""

    seed: int
    """Seed of every draw, 0 to 2^63 - 1."""
    global_batch: int
    """Samples of one optimizer step over all ranks, 1 or more."""
    window_steps: int = 16
    """Optimizer steps drawn at once from one weight table, 1 or more; a change waits for the next window."""
    num_samples: int = 0
    """Size of the data set; 0 takes it from the distances."""
    fingerprint: str = ""
    """Fingerprint of the data set (hex); empty when there is none to compare."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Policy, schedule and their constants."""
    rho: float = 0.3
    """Share of the data that a selection round keeps, in (0, 1] (PASS: 0.3)."""
    reported_score: str = "loss"
    """Kind of the scores that the trainer reports, one of SCORE_KINDS; `importance` reads it by default."""
    kept_windows: int = 1024
    """Newest windows whose draws stay in the log, 1 or more; older ones are drawn again when asked for."""
    snapshot_windows: int = 64
    """Windows between two snapshots of the sample table, 1 or more."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63); got {self.seed}.")
        for name in ("global_batch", "window_steps", "kept_windows", "snapshot_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}.")
        if self.num_samples < 0:
            raise ValueError(f"num_samples must be 1 or more, or 0 to count the distances; got {self.num_samples}.")
        if not 0.0 < self.rho <= 1.0:
            raise ValueError(f"rho must be a share in (0, 1]; got {self.rho}.")
        _ = self.policy_options  # checks the kind of score

    @property
    def policy_options(self) -> PolicyOptions:
        """Constants of the policies, with the kind of score that `importance` reads."""
        options = self.curriculum.options
        return replace(options, importance_kind=options.importance_kind or self.reported_score)

    def size_of(self, distance: NDArray[np.float32] | None) -> int:
        """Return the number of samples of the data set with these distances.

        Raises:
            ValueError: if neither the distances nor `num_samples` give it, or if they contradict each other.
        """
        if distance is None:
            if not self.num_samples:
                raise ValueError("num_samples must be given when there are no distances; got 0.")
            return self.num_samples
        if self.num_samples not in (0, len(distance)):
            raise ValueError(
                f"distance must have one value for each of the {self.num_samples} samples; got {len(distance)}. "
                "Run `tempera score` on this index."
            )
        return len(distance)

    def identity(self, distance: NDArray[np.float32] | None) -> dict[str, Any]:
        """Return the values that decide the draws of a run, by name: they must not change while the run lives.

        A schedule by progress is not part of it: its values come with the trainer's requests and are in the log.
        """
        curriculum, digest = self.curriculum, "none"
        if distance is not None:
            digest = hashlib.blake2b(np.ascontiguousarray(distance).data, digest_size=16).hexdigest()
        # The fields that decide draws, flat, so that RunMismatch can name the one that differs.
        growth = None if curriculum.adaptive is None else {**asdict(curriculum.adaptive), "end": curriculum.end}
        return {
            "seed": self.seed,
            "global_batch": self.global_batch,
            "window_steps": self.window_steps,
            "num_samples": self.size_of(distance),
            "fingerprint": self.fingerprint,
            "policy": curriculum.policy,
            "user_policies": curriculum.user_policies,
            "options": asdict(self.policy_options),
            "rho": self.rho,
            "effective_size": curriculum.start,
            "growth": growth,
            "spare_fraction": curriculum.spare_fraction,
            "distance": digest,
        }
