"""What the loaders of a fleet are: all alike, or the first few on GPUs and the rest on CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loader.config import LoaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderKind:
    """Loaders that are alike, and what each of them needs of the cluster."""

    config: LoaderConfig
    """What each is given."""
    count: int | None = None
    """So many loaders are of this kind, counted after those of the kinds before; None takes all that are left."""
    num_cpus: float = 1.0
    """CPUs that Ray reserves for each; 0 reserves none."""
    num_gpus: float = 0.0
    """GPUs, or a fraction of one, for each."""
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes that they may run on; empty means any node."""

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 0) or self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError(f"count, num_cpus and num_gpus must not be negative; got {self}")

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options of the actor."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "label_selector": dict(self.node_labels)}


def kind_of(name: str, kinds: Sequence[LoaderKind]) -> int:
    """Return the position of a loader's kind: a name keeps its kind, whatever the size of the fleet.

    Args:
        name: As `loader-7`.
        kinds: The last one is for all that are left.

    Raises:
        ValueError: If there is no kind for it.
    """
    number = int(name.rpartition("-")[2])
    for position, kind in enumerate(kinds):
        if kind.count is None or number < kind.count:
            return position
        number -= kind.count
    raise ValueError(f"{name} has no kind: the last kind must have no count, to take all that are left")
