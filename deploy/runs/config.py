"""RunConfig: everything that decides a run, as one nested frozen dataclass, to and from JSON.

It nests the loader's, the selection's and the trainer's own configs, so each knob is declared once, where it is used.
`config.json` in the run directory holds the resolved value before the first step; `tempera resume` reads only that.
"""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.runs.rundir import write_json
from loader import FleetConfig, LoaderConfig, Transform
from scoring import CurriculumConfig, Prototypes, SelectionConfig
from trainer import METHODS, TrainConfig
from trainer.config import choose, from_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images a run sees, and how they are cropped."""

    index: str
    """Sample index of the training images (Parquet, from `tempera shards index`)."""
    prototypes: str | None = None
    """Distances and clusters (Parquet, from `tempera score`); needed by the policies that use them."""
    test_index: str | None = None
    """Sample index of held-out labelled images for the nearest-neighbour curve, or none."""
    transform: Transform = field(default_factory=Transform)


FOLLOWED = ("loss", "nn_cls", "nn_mean")
"""Metrics that an adaptive schedule can follow: the mean training loss of each window, and the nearest-neighbour
accuracies of `evaluate_every`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainersConfig:
    """Trainer workers under Ray Train."""

    workers: int = 1
    """Data-parallel ranks."""
    min_workers: int = 0
    """Fewest ranks to train with while nodes are missing; 0 keeps the number fixed."""
    use_gpu: bool = False
    """One GPU for each rank."""
    cpus_per_worker: float = 1.0
    """Logical CPUs that Ray reserves for each rank; also the threads of a rank on the CPU."""
    max_failures: int = 3
    """Restarts from the last checkpoint before the run gives up."""
    node_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the Ray nodes that ranks may run on, as in {"tempera-role": "trainer"}; empty means any node."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_workers <= self.workers:
            raise ValueError(f"trainers.min_workers must be in 0..workers ({self.workers}); got {self.min_workers}.")

    @property
    def range(self) -> int | tuple[int, int]:
        """Return the number of ranks, or (least, most) for an elastic group, as Ray Train takes it."""
        return (self.min_workers, self.workers) if self.min_workers else self.workers


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run; each part is the config of the component that uses it."""

    name: str
    """Name of the run: letters, digits, '-' and '_'. The actors are named after it."""
    data: DataConfig
    train: TrainConfig
    """Method, model, optimiser, steps, seed."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Each loader's threads, cache, decoder and storage."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """Number of loaders, and what each may use of the cluster."""
    trainers: TrainersConfig = field(default_factory=TrainersConfig)
    extensions: tuple[str, ...] = ()
    """Importable modules that register your own methods; every process of the run imports them."""
    evaluate_every: int = 0
    """Steps between nearest-neighbour evaluations, which need labelled images; 0 means never."""
    pictures: bool = True
    """Draw what the method does at the start, in the middle and at the end, and write report/report.html."""

    def load_extensions(self) -> None:
        """Import the modules of `extensions`.

        Raises:
            ValueError: a module cannot be imported.
        """
        for module in self.extensions:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ValueError(f"extensions must be importable modules; {module!r} is not: {error}.") from error

    def __post_init__(self) -> None:
        # First, because the method or the policy that is checked below may be registered by an extension.
        self.load_extensions()
        choose(self.train.method, METHODS, "train.method")
        choose(self.curriculum.growth.metric, dict.fromkeys(FOLLOWED), "curriculum.growth.metric")
        if self.curriculum.adaptive and self.curriculum.growth.metric != "loss" and not self.evaluate_every:
            raise ValueError(
                f"an adaptive schedule that follows {self.curriculum.growth.metric} needs evaluate_every above 0; got "
                "0. Set it to some epochs of steps, or follow the loss."
            )
        if self.train.deterministic and self.fleet.gpu_loaders and self.loader.decoder == "cpu":
            raise ValueError(
                "train.deterministic needs loaders with one decoder: CPU and GPU decoders differ by rounding, so in a "
                "mixed fleet pixels depend on which loader made them. Set fleet.gpu_loaders to 0, or loader.decoder to "
                "dali."
            )
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name must be letters, digits, '-' and '_'; got {self.name!r}.")
        # An elastic group may have any number of ranks in the range: the batch must be divisible by each.
        counts = range(self.trainers.min_workers or self.trainers.workers, self.trainers.workers + 1)
        step = math.lcm(*counts)
        if self.train.global_batch % step:
            below = self.train.global_batch // step * step
            workers = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
            raise ValueError(
                f"train.global_batch must be divisible by trainers.workers ({workers}); got "
                f"{self.train.global_batch}. Try {below or step} or {below + step}."
            )


def save_config(config: RunConfig, path: Path) -> None:
    """Write the configuration as JSON, whole or not at all: a crash must not leave half a file for `tempera resume`."""
    write_json(path, asdict(config))


def load_config(path: Path) -> RunConfig:
    """Read a configuration that `save_config` wrote.

    Raises:
        ValueError: not JSON, an unknown field (with the nearest name), or a value out of range.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, a run's configuration; it holds {type(value).__name__}.")
    try:
        return from_dict(RunConfig, value)
    except (ValueError, TypeError) as error:  # TypeError: a field is missing, or a value has another type
        raise ValueError(f"{path} must hold a configuration of this version of Tempera: {error}") from error


def selection_config(config: RunConfig, *, num_samples: int, fingerprint: str) -> SelectionConfig:
    """Return the configuration of the run's selection over a training index.

    By the index's fingerprint, scores that were computed for other data are refused.
    """
    train = config.train
    return SelectionConfig(
        seed=train.seed,
        global_batch=train.global_batch,
        window_steps=train.window_steps,
        num_samples=num_samples,
        fingerprint=fingerprint,
        curriculum=config.curriculum,
        rho=train.model.pass_.keep,
        reported_score="loss" if train.model.pass_.enabled else "bss",  # kind of the trainer's score reports
    )


def prototype_distances(config: RunConfig) -> NDArray[np.float32] | None:
    """Return the run's prototype distances, float32[N] in [0, 1], in the order of the index; None without prototypes.

    Raises:
        FileNotFoundError: the run names a file that is not there.
        ValueError: it is not a prototypes file.
    """
    if config.data.prototypes is None:
        return None
    return Prototypes.load(config.data.prototypes).distance
