"""SelectionConfig: everything, besides distances and scores, that decides which samples a run sees."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.draw.sampling import BLOCK, SEGMENT_BLOCKS
from scoring.policies import PolicyOptions, parse_policy
from scoring.schedules import Adaptive
from scoring.temperature import checked_effective_size

OPERATIONAL = ("kept_windows", "snapshot_windows", "ranges")
"""Fields that may change between two openings of a run: they do not change a draw."""


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
    policy: str = "prototypical"
    """Policy at the start: a name of `scoring.POLICIES`, or names joined by "*"."""
    effective_size: float = 0.2
    """Effective size while neither the trainer nor a person has said another; share of N in (0, 1 - 1/e]."""
    spare_fraction: float = 0.01
    """Spare draws carried by each window as a share of its draws, in [0, 1]; at least one spare is carried."""
    fingerprint: str = ""
    """Fingerprint of the data set (hex); empty when there is none to compare."""
    options: PolicyOptions = field(default_factory=PolicyOptions)
    """Constants of the policies."""
    user_policies: tuple[str, ...] = ()
    """Import paths ("package.module:function") that `policy` and later controls may name beside POLICIES."""
    adaptive: Adaptive | None = None
    """Rule by which reported metrics steer the effective size; None leaves it to the trainer's requests."""
    segment_samples: int = SEGMENT_BLOCKS * BLOCK
    """Samples whose weights are summed together, a multiple of 64; id ranges end where segments end."""
    kept_windows: int = 1024
    """Newest windows whose draws stay in the log, 1 or more; older ones are drawn again when asked for."""
    snapshot_windows: int = 64
    """Windows between two snapshots of the sample table, 1 or more."""
    ranges: int = 1
    """Id ranges that the sample table is cut into, 1 or more; it does not change what is drawn."""

    def __post_init__(self) -> None:
        """Check every field."""
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63); got {self.seed}.")
        for name in ("global_batch", "window_steps", "kept_windows", "snapshot_windows", "ranges"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}.")
        if self.num_samples < 0:
            raise ValueError(f"num_samples must be 1 or more, or 0 to count the distances; got {self.num_samples}.")
        if not 0.0 <= self.spare_fraction <= 1.0:
            raise ValueError(f"spare_fraction must be in [0, 1]; got {self.spare_fraction}.")
        if self.segment_samples < BLOCK or self.segment_samples % BLOCK:
            raise ValueError(f"segment_samples must be a multiple of {BLOCK}, 1 or more; got {self.segment_samples}.")
        checked_effective_size(self.effective_size)
        parse_policy(self.policy, self.user_policies)

    @property
    def window_draws(self) -> int:
        """Draws of one window, spares not counted."""
        return self.global_batch * self.window_steps

    @property
    def window_spares(self) -> int:
        """Spare draws of one window."""
        return max(1, round(self.spare_fraction * self.window_draws))

    @property
    def layout(self) -> dict[str, int]:
        """How the sample table is cut."""
        return {"ranges": self.ranges, "segment_blocks": self.segment_samples // BLOCK}

    def in_ranges(self, ranges: int) -> SelectionConfig:
        """The same with its `num_samples` cut into so many id ranges, in smaller segments where the usual are too few.

        Smaller segments are part of the run's identity: they round sums otherwise.
        """
        if ranges == 1:
            return self
        even = -(-self.num_samples // ranges)
        segment = min(self.segment_samples, -(-even // BLOCK) * BLOCK)
        return replace(self, ranges=ranges, segment_samples=segment)

    def size_of(self, distance: NDArray[np.float32] | None) -> int:
        """Samples of the data set whose distances these are.

        Raises:
            ValueError: if neither the distances nor `num_samples` tell, or if they contradict each other.
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
        """What decides the draws of a run, as plain values: it must not change while the run lives."""
        digest = "none"
        if distance is not None:
            digest = hashlib.blake2b(np.ascontiguousarray(distance).data, digest_size=16).hexdigest()
        fields = {name: value for name, value in asdict(self).items() if name not in OPERATIONAL}
        return {**fields, "num_samples": self.size_of(distance), "distance": digest}
