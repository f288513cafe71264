"""What could go wrong on this machine, found before money is spent: each finding with what to do about it.

A check is a function that returns findings; `CHECKS` lists them in the order they are shown. Nothing is started or
changed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warning", "error"]

NEEDED = {
    "torch": (2, 11),
    "timm": (1, 0, 20),
    "ray": (2, 58),
    "webdataset": (1, 0, 2),
    "numpy": (2, 0),
    "pyarrow": (18,),
}
"""Lowest versions; Ray before 2.58 has known remote execution holes."""
FAISS_WHEELS = ("faiss-cpu", "faiss-gpu-cu12", "faiss-gpu")
GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its size is read, nothing is written


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor's answer."""

    check: str
    """What was looked at."""
    level: Level
    """ok, warning (works, but), error (will not work)."""
    found: str
    """What was found."""
    advice: str = ""
    """What to do, empty when all is well."""


def examine(*, directory: Path, index: Path | None) -> list[Finding]:
    """Run every check.

    Args:
        directory: where a run would be written.
        index: a sample index to check against its shards, or None.
    """
    findings = [finding for check in CHECKS for finding in check(directory)]
    return findings + (list(_index(index)) if index else [])


def _versions(_: Path) -> Iterator[Finding]:
    version = platform.python_version()
    fine = sys.version_info >= (3, 11)
    yield Finding(
        check="python",
        level="ok" if fine else "error",
        found=version,
        advice="" if fine else "install Python 3.11 or later",
    )
    for name, lowest in NEEDED.items():
        wanted = ".".join(map(str, lowest))
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(check=name, level="error", found="not installed", advice=f"pip install '{name}>={wanted}'")
            continue
        fine = _numbers(found) >= lowest
        yield Finding(
            check=name, level="ok" if fine else "error", found=found, advice="" if fine else f"needs {wanted} or later"
        )


def _faiss(_: Path) -> Iterator[Finding]:
    installed = [name for name in FAISS_WHEELS if _installed(name)]
    if len(installed) == 1:
        yield Finding(check="faiss", level="ok", found=installed[0])
    elif installed:
        advice = "every faiss wheel installs the same module: uninstall all, then install one"
        yield Finding(check="faiss", level="error", found=" and ".join(installed), advice=advice)
    else:
        yield Finding(
            check="faiss", level="error", found="not installed", advice="pip install 'tempera-mim[cpu]' (or [gpu])"
        )


def _memory(directory: Path) -> Iterator[Finding]:
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    fine = shared >= GIB
    advice = (
        "" if fine else "Ray keeps batches in /dev/shm: give the container at least 1 GiB (docker run --shm-size=2g)"
    )
    yield Finding(
        check="shared memory", level="ok" if fine else "warning", found=f"{shared / GIB:.1f} GiB", advice=advice
    )
    existing = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    fine = free >= 5 * GIB
    yield Finding(
        check="disk",
        level="ok" if fine else "warning",
        found=f"{free / GIB:.0f} GiB free",
        advice="" if fine else f"make room in {existing}",
    )
    writable = os.access(existing, os.W_OK)
    yield Finding(
        check="run directory",
        level="ok" if writable else "error",
        found=str(existing),
        advice="" if writable else "not writable: choose another --out",
    )


def _processors(_: Path) -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0))
    yield Finding(
        check="cpu",
        level="ok" if usable >= 2 else "warning",
        found=f"{usable} usable cores",
        advice="" if usable >= 2 else "the trainer and its loaders will share one core",
    )


def _gpu(_: Path) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        yield Finding(check="gpu", level="ok", found=names)
        return
    yield Finding(check="gpu", level="ok", found="none: training and decoding run on the CPU")


def _dali(_: Path) -> Iterator[Finding]:
    try:
        from nvidia import dali
    except ImportError as error:
        yield Finding(
            check="dali",
            level="warning",
            found=str(error),
            advice="decoder 'dali' needs nvidia-dali-cuda130; 'cpu' works without it",
        )
        return
    yield Finding(check="dali", level="ok", found=dali.__version__)


def _token(_: Path) -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE", "token (set by tempera)")
    fine = mode.startswith("token")
    advice = "" if fine else "unset RAY_AUTH_MODE or set it to token: an open Ray cluster runs anybody's code"
    yield Finding(check="ray authentication", level="ok" if fine else "error", found=mode, advice=advice)


def _index(path: Path) -> Iterator[Finding]:
    from loader import LoaderError, ShardIndex

    try:
        index = ShardIndex.load(path)
        index.verify()
    except (LoaderError, ValueError, OSError) as error:
        yield Finding(check="index", level="error", found=str(path), advice=str(error))
        return
    found = f"{len(index):,} samples in {len(index.shard_urls)} shards, fingerprint {index.fingerprint[:12]}"
    yield Finding(check="index", level="ok", found=found)


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (_versions, _faiss, _processors, _memory, _gpu, _dali, _token)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
