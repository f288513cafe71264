"""Trackers of a run's numbers and pictures: TensorBoard always, MLflow and Weights & Biases on request.

The two services are imported only on request; a missing package is an error before the run starts.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

FLUSH_S = 10


class Tracker(Protocol):
    """Receives the numbers and pictures of a run."""

    def restart(self) -> None:
        """Prepare for all numbers again, from the first step on: the run was cut back to a checkpoint."""

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Store values of a step; `time_s` is seconds since the epoch."""

    def picture(self, name: str, step: int, path: Path) -> None:
        """Store a PNG of a step."""

    def close(self) -> None:
        """Write the buffer."""


class TensorBoard:
    """Event files in a folder of the run. They are made anew from metrics.jsonl whenever a run starts or resumes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._make_writer = folder, _summary_writer()
        self._writer: Any = None

    def restart(self) -> None:
        """Begin a new event file without the old ones."""
        self.close()
        # TensorBoard cannot take back a step: without this it would show both curves after the checkpoint.
        if self._folder.is_dir():
            for path in self._folder.glob("events.out.tfevents.*"):
                with suppress(FileNotFoundError):
                    path.unlink()

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._open().add_scalar(name, value, global_step=step, walltime=time_s)

    def picture(self, name: str, step: int, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._open().add_image(name, pixels, global_step=step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        if self._writer is None:  # an event file appears with the first value, not before
            self._writer = self._make_writer(str(self._folder), flush_secs=FLUSH_S, write_to_disk=True)
        return self._writer


def _summary_writer() -> Any:
    """Import tensorboardX's writer class without torch, which the process that starts a run does not need.

    tensorboardX imports torch only for the annotation of a type, and does without where the import fails. It is made
    to fail for the length of this import, before any thread of the run exists.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import then raises ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


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
        # Older servers refuse parameters above 250 characters (mlflow/mlflow issue 1976).
        self._mlflow.log_params({key: str(value)[:250] for key, value in flat(config).items()})

    def restart(self) -> None:
        """Keep what was sent, and send those steps no more."""
        self._sent = self._newest

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        if step > self._sent:
            self._newest = max(step, self._newest)
            self._mlflow.log_metrics({name.replace(" ", "_"): value for name, value in values.items()}, step=step)

    def picture(self, name: str, step: int, path: Path) -> None:
        self._mlflow.log_artifact(str(path), artifact_path="report")

    def close(self) -> None:
        self._mlflow.end_run()


class Wandb:
    """A Weights & Biases run, online or offline as WANDB_MODE says."""

    def __init__(self, module: ModuleType, *, name: str, config: Mapping[str, Any]) -> None:
        self._wandb: Any = module
        self._newest = self._sent = -1
        # With the run's name as its id a resumed run continues its curves instead of starting new ones.
        self._run: Any = module.init(project="tempera", name=name, id=name, resume="allow", config=dict(config))

    def restart(self) -> None:
        """Keep what was sent, and send those steps no more."""
        self._sent = self._newest

    def scalars(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        if step > self._sent:
            self._newest = max(step, self._newest)
            self._run.log(dict(values), step=step)

    def picture(self, name: str, step: int, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # W&B's own process writes the file of an offline run; it may still be at it


SERVICES: dict[str, Callable[..., Tracker]] = {"mlflow": Mlflow, "wandb": Wandb}
"""Trackers by the name of the package that they need."""


def build_trackers(folder: Path, services: tuple[str, ...], *, name: str, config: Mapping[str, Any]) -> list[Tracker]:
    """Return the tracker of TensorBoard, with event files in `folder`, and those of the named services.

    Run name and JSON-able configuration go to the services.

    Raises:
        ValueError: a service is unknown, or its package is not installed.
    """
    # Import every package first: a missing one must not leave a run begun at the service named before it.
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
    """Return nested dictionaries as one, with names joined by dots."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
