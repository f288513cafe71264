"""Checkpoints: safetensors and JSON, complete or absent.

A checkpoint is a directory `step-00000100` with `model.safetensors`, `optimizer.safetensors`, optionally
`ema.safetensors`, and `state.json`, which holds the step, the config, the stream's cursor and each file's size and
CRC-32. A thread writes it under a temporary name, syncs and renames it: the training step waits only for the copy of
the tensors. A damaged checkpoint is refused and the one before it is loaded.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import CheckpointError

log = logging.getLogger(__name__)

FAILPOINT = "tempera.failpoint"
"""Audit event of a place where tests inject faults; without an audit hook it does nothing."""

FORMAT = 1
_PREFIX = "step-"
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory."""

    path: Path
    state: dict[str, Any]
    """The JSON part: `step`, `config`, `stream` and what the caller added."""
    tensors: dict[str, dict[str, Tensor]]
    """Tensors on the CPU by file (`model`, `optimizer`, `ema`) and name."""


class Checkpoints:
    """The checkpoints of one run: written in the background, the newest and the best kept."""

    def __init__(self, directory: str | Path, *, keep: int = 3) -> None:
        self.directory = Path(directory)
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Copy the tensors on their device and write the checkpoint in the background; waits for the one before it.

        The steps done name its directory. Tensors are by file (`model`, `optimizer`, `ema`) and name; `state` has JSON
        values, of which `metric`, a number that is better when lower, decides which checkpoint is the best.

        Raises:
            CheckpointError: the write of the one before it failed.
        """
        self.wait()  # one at a time: each copy takes the memory of weights and moments once more
        copies = {
            file: {name: value.detach().clone() for name, value in group.items()} for file, group in tensors.items()
        }
        # The writing thread waits for this event, not the training step: the copies are queued behind its kernels.
        on_gpu = any(value.is_cuda for group in tensors.values() for value in group.values())
        copied = torch.cuda.current_stream().record_event() if on_gpu else None
        self._pending = self._writer.submit(self._write, step, copies, dict(state), copied)

    def wait(self) -> Path | None:
        """Wait for the write in progress and return its path.

        Raises:
            CheckpointError: the disk is full or refuses the write; earlier checkpoints are untouched.
        """
        pending, self._pending = self._pending, None
        try:
            return pending.result() if pending else None
        except OSError as err:
            raise CheckpointError(
                f"a checkpoint must fit on the disk at {self.directory}; writing failed: {err}. Free space and resume."
            ) from err

    def close(self) -> None:
        """Finish the write in progress and end the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def latest(self) -> Checkpoint | None:
        """Load the newest checkpoint that is intact, None when there is none at all.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        paths = checkpoint_paths(self.directory)
        for path in reversed(paths):
            try:
                return load_checkpoint(path)
            except CheckpointError as err:
                log.warning("checkpoint skipped: %s", err)
        if paths:
            raise CheckpointError(
                f"at least one checkpoint must be intact; all {len(paths)} in {self.directory} are damaged. Start a "
                "new run."
            )
        return None

    def _write(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        copied: torch.cuda.Event | None,
    ) -> Path:
        """Write one checkpoint, then remove all but the newest `keep` and the best."""
        final = self.directory / f"{_PREFIX}{step:08d}"
        temporary = self.directory / f".writing-{final.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        sys.audit(FAILPOINT, "checkpoint.write")
        # On a GPU the copy to the host runs on a stream of its own, while the next steps run.
        stream = torch.cuda.stream(torch.cuda.Stream()) if copied else contextlib.nullcontext()  # type: ignore[no-untyped-call]
        with stream:
            if copied:
                copied.wait()
            for file, group in tensors.items():
                on_host = {name: value.to("cpu").contiguous() for name, value in group.items()}
                save_file(on_host, temporary / f"{file}.safetensors")
        files = {
            path.name: {"bytes": path.stat().st_size, "crc32": _crc32(path)} for path in temporary.glob("*.safetensors")
        }
        sys.audit(FAILPOINT, "checkpoint.state")
        text = json.dumps({"format": FORMAT, "step": step, **state, "files": files}, indent=1)
        (temporary / "state.json").write_text(text, "ascii")
        # Files and directory first, then the rename, then the parent: a power cut leaves the old state or the new one.
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        sys.audit(FAILPOINT, "checkpoint.rename")
        temporary.rename(final)
        sys.audit(FAILPOINT, "checkpoint.renamed")
        _sync(self.directory)
        paths = checkpoint_paths(self.directory)
        metrics = {path: json.loads((path / "state.json").read_text("ascii")).get("metric") for path in paths}
        scored = [path for path in paths if metrics[path] is not None]
        best = min(scored, key=lambda path: metrics[path], default=None)
        # After the rename: at every moment at least `keep` whole checkpoints are on the disk.
        for path in paths[: -self.keep]:
            if path != best:
                shutil.rmtree(path)
        return final


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a checkpoint directory, or the newest of a run directory or of its checkpoints directory.

    Raises:
        CheckpointError: it is missing, damaged, or of an unknown format.
    """
    directory = Path(path)
    for place in (directory, directory / "checkpoints"):
        if inside := checkpoint_paths(place):
            directory = inside[-1]
            break
    try:
        state = json.loads((directory / "state.json").read_text("ascii"))
        found, files = state["format"], dict(state["files"])
        # The names come from a file: they may not lead out of the directory, nor to anything but safetensors.
        for name, expected in files.items():
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{name!r} is not the name of a checkpoint file")
            if not all(type(expected[field]) is int for field in ("bytes", "crc32")):
                raise ValueError(f"{name} has no size or CRC-32")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(
            f"a checkpoint must hold a readable state.json; {directory} does not ({err}). Name a step-* directory."
        ) from err
    if found != FORMAT:
        raise CheckpointError(
            f"a checkpoint must be of format {FORMAT}; {directory} is of format {found}. Use the version that wrote it."
        )
    tensors = {
        name.removesuffix(".safetensors"): _load_verified(directory / name, expected)
        for name, expected in files.items()
    }
    return Checkpoint(directory, state, tensors)


def checkpoint_paths(directory: Path) -> list[Path]:
    """Return the checkpoint directories inside a directory, oldest first; an unfinished one has another name."""
    # The step is padded with zeros, so that the order of the names is that of the steps.
    return sorted(path for path in directory.glob(f"{_PREFIX}*") if (path / "state.json").is_file())


def _load_verified(path: Path, expected: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the tensors of one file.

    Raises:
        CheckpointError: its size or CRC-32 is not the expected one, or it cannot be read.
    """
    try:
        if path.stat().st_size != expected["bytes"] or _crc32(path) != expected["crc32"]:
            raise CheckpointError(
                f"a checkpoint file must match the size and CRC-32 in its state.json; {path} does not. Use an "
                "earlier one."
            )
        return load_file(path)
    except (OSError, SafetensorError) as err:
        raise CheckpointError(
            f"a checkpoint must have all its files; {path} cannot be read ({err}). Use an earlier one."
        ) from err


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state of the optimizers as tensors named `phase/parameter/moment`.

    Torch's own state dict has positions instead, which depend on how the parameters are grouped.
    """
    return {
        f"{phase}/{name}/{moment}": value
        for phase, optimizer in optimizers.items()
        for name, parameter in _named(optimizer)
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizers: Mapping[str, torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    place_like: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Restore the result of `optimizer_tensors`; `place_like` moves a moment to its parameter's device and shards."""
    by_parameter: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in tensors.items():
        phase, name, moment = key.split("/")
        by_parameter.setdefault((phase, name), {})[moment] = value
    for phase, optimizer in optimizers.items():
        for name, parameter in _named(optimizer):
            moments = by_parameter.get((phase, name), {})
            optimizer.state[parameter] = {moment: place_like(value, parameter) for moment, value in moments.items()}


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def _crc32(path: Path) -> int:
    """Return the CRC-32 of a file, read in pieces: the weights of a large model need not fit in memory twice."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _sync(path: Path) -> None:
    """Push a file, or the names in a directory, to the disk; returns when they would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
