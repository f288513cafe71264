"""The knobs of a fleet, and what each of its loaders is: all alike, or the first few on GPUs and the rest on CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from loader.config import LoaderConfig
from loader.fleet.scaling import ScalePolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSpec:
    """Loaders that are alike, and what each of them needs of the cluster."""

    config: LoaderConfig
    count: int | None = None
    """Number of such loaders, counted after those of the specs before; None takes all that are left."""
    num_cpus: float = 1.0
    """CPUs that Ray reserves for each; 0 reserves none."""
    num_gpus: float = 0.0
    """GPUs, or a fraction of one, for each."""
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes that they may run on; empty means any node."""

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 0) or self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError(f"count, num_cpus and num_gpus must not be negative; got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetConfig:
    """How many loaders a run has, and what each may use of the cluster."""

    loaders: int = 2
    """Loaders at the start, 1 or more; `tempera scale` changes it live."""
    min_loaders: int = 1
    """Fewest loaders when the fleet scales by itself."""
    max_loaders: int = 0
    """Most loaders when the fleet scales by itself: up when trainers wait for more than 5 % of their time, down when
    loaders idle. 0 leaves the number to people."""
    cpus_per_loader: float = 0.25
    """Logical CPUs that Ray reserves for each loader; raise it to one per thread on a real cluster."""
    gpu_loaders: int = 0
    """Loaders of a fleet with the `cpu` decoder that decode with DALI on a GPU: the first ones, so that scaling down
    ends CPU loaders first. All loaders make the same samples and crops; pixels of the two decoders differ by rounding.
    0 has none."""
    gpus_per_loader: float = 0.0
    """GPUs that Ray reserves for each loader with DALI, a fraction to share one; 0 runs DALI on the CPU."""
    node_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the Ray nodes that loaders may run on, as in {"tempera-role": "loader"}; empty means any node."""

    def __post_init__(self) -> None:
        if self.max_loaders and not 1 <= self.min_loaders <= self.max_loaders:
            raise ValueError(
                f"fleet.min_loaders must be in 1..max_loaders ({self.max_loaders}); got {self.min_loaders}."
            )
        if self.gpu_loaders < 0 or (self.gpu_loaders and not self.gpus_per_loader > 0):
            raise ValueError(
                "fleet.gpu_loaders must not be negative, and fleet.gpus_per_loader must be above 0 when there are any; "
                f"got {self.gpu_loaders} and {self.gpus_per_loader:g}."
            )

    @property
    def policy(self) -> ScalePolicy | None:
        """Bounds of a fleet that scales by itself; None when people set its size."""
        if not self.max_loaders:
            return None
        return ScalePolicy(min_size=self.min_loaders, max_size=self.max_loaders)

    def specs(self, config: LoaderConfig) -> list[LoaderSpec]:
        """Return the specs of the fleet's loaders, those on GPUs first; these ignore the config's decoder and cache."""
        # Ray shows an actor only the GPUs that it reserved: to a loader its own is always number 0.
        on_gpu = config.decoder == "dali" and self.gpus_per_loader > 0
        rest = LoaderSpec(
            config=replace(config, device_id=0) if on_gpu else config,
            num_cpus=self.cpus_per_loader,
            num_gpus=self.gpus_per_loader if on_gpu else 0.0,
            node_labels=self.node_labels,
        )
        if config.decoder == "dali" or not self.gpu_loaders:
            return [rest]
        # Decoded on the GPU, an image never lies whole in memory, so there is nothing to cache.
        decoding_on_gpu = replace(config, decoder="dali", device_id=0, cache_bytes=0)
        return [replace(rest, config=decoding_on_gpu, count=self.gpu_loaders, num_gpus=self.gpus_per_loader), rest]


def spec_of(name: str, specs: Sequence[LoaderSpec]) -> int:
    """Return the position of a loader's spec: a name keeps its spec, whatever the size of the fleet.

    Raises:
        ValueError: If no spec is left for it.
    """
    # By the number alone, so that a replacement under the same name is of the same kind, and scaling changes no other.
    number = int(name.rpartition("-")[2])
    for position, spec in enumerate(specs):
        if spec.count is None or number < spec.count:
            return position
        number -= spec.count
    raise ValueError(f"{name} has no spec: the last spec must have no count, to take all that are left")
