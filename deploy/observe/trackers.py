"""Where a run's numbers and pictures also go: TensorBoard always, MLflow and Weights & Biases when asked for.

A tracker takes scalars and pictures by step. The two services are imported only when they are asked for; if they are
not installed, the run says so before it starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

FLUSH_S = 10


class Tracker(Protocol):
    """What takes the numbers of a run."""

    def restart(self) -> None:
        """The numbers will come again from the first step on."""

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Values of a step; `time_s` is seconds since the epoch."""

    def picture(self, name: str, step: int, path: Path) -> None:
        """A PNG of a step."""

    def close(self) -> None:
        """Write what is buffered."""


class TensorBoard:
    """Event files in a folder of the run. They are made anew from metrics.jsonl whenever a run starts or resumes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def restart(self) -> None:
        """Begin a new event file without the old ones."""
        self.close()
        if self._folder.is_dir():
            for path in self._folder.glob("events.out.tfevents.*"):
                with suppress(FileNotFoundError):
                    path.unlink()

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._open().add_scalar(name, value, global_step=step, walltime=time_s)

    def picture(self, name: str, step: int, path: Path) -> None:
        """See Tracker."""
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._open().add_image(name, pixels, global_step=step, dataformats="HWC")

    def close(self) -> None:
        """See Tracker."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), flush_secs=FLUSH_S, write_to_disk=True)
        return self._writer


class Mlflow:
    """An MLflow run at the tracking server that MLFLOW_TRACKING_URI names."""

    def __init__(self, module: ModuleType, *, name: str, config: Mapping[str, Any]) -> None:
        self._mlflow: Any = module
        self._newest = self._sent = -1
        try:
            self._mlflow.set_experiment("tempera")
        except self._mlflow.MlflowException as error:
            raise ValueError(
                f"MLflow takes no runs ({str(error).splitlines()[0]}). Set MLFLOW_TRACKING_URI to a server that "
                "answers, as in http://127.0.0.1:5000, or leave mlflow out of TEMPERA_TRACKERS."
            ) from error
        self._mlflow.start_run(run_name=name)
        self._mlflow.log_params({key: str(value)[:250] for key, value in flat(config).items()})

    def restart(self) -> None:
        """What was sent stays, and is not sent again."""
        self._sent = self._newest

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """See Tracker; steps that were sent before a restart are left out."""
        if step > self._sent:
            self._newest = max(step, self._newest)
            self._mlflow.log_metrics({name.replace(" ", "_"): value for name, value in values.items()}, step=step)

    def picture(self, name: str, step: int, path: Path) -> None:
        """See Tracker."""
        self._mlflow.log_artifact(str(path), artifact_path="report")

    def close(self) -> None:
        """See Tracker."""
        self._mlflow.end_run()


class Wandb:
    """A Weights & Biases run, online or offline as WANDB_MODE says."""

    def __init__(self, module: ModuleType, *, name: str, config: Mapping[str, Any]) -> None:
        self._wandb: Any = module
        self._newest = self._sent = -1
        self._run: Any = module.init(project="tempera", name=name, id=name, resume="allow", config=dict(config))

    def restart(self) -> None:
        """What was sent stays, and is not sent again."""
        self._sent = self._newest

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """See Tracker; steps that were sent before a restart are left out."""
        if step > self._sent:
            self._newest = max(step, self._newest)
            self._run.log(dict(values), step=step)

    def picture(self, name: str, step: int, path: Path) -> None:
        """See Tracker."""
        self._run.log({name: self._wandb.Image(str(path))})

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()
        self._wandb.teardown()  # W&B's own process writes the file of an offline run; it may still be at it


SERVICES: dict[str, Callable[..., Tracker]] = {"mlflow": Mlflow, "wandb": Wandb}
"""Trackers by the name of the module that they need."""


def build_trackers(folder: Path, services: tuple[str, ...], *, name: str, config: Mapping[str, Any]) -> list[Tracker]:
    """TensorBoard in `folder`, and the services named.

    Args:
        folder: for event files.
        services: names in SERVICES.
        name: the run's.
        config: the run's, JSON-able.

    Raises:
        ValueError: a service is unknown, or its package is not installed.
    """
    modules = {service: _module(service) for service in services}
    made = [SERVICES[service](module, name=name, config=config) for service, module in modules.items()]
    return [TensorBoard(folder), *made]


def _module(service: str) -> ModuleType:
    if service not in SERVICES:
        raise ValueError(f"a tracker must be one of {', '.join(SERVICES)}; got {service!r}.")
    try:
        return importlib.import_module(service)
    except ImportError as error:
        raise ValueError(
            f"the tracker {service!r} needs the package {service}, which is not installed ({error}). "
            f"Install tempera-mim[{service}], or leave it out: TensorBoard files are written anyway."
        ) from error


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
