"""What could go wrong on this machine, found before money is spent: each finding with what to do about it.

A check is a function that returns findings; `CHECKS` lists them in the order they are shown. Nothing is started or
changed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.remote.doctor import machine
from deploy.remote.doctor.data import data_findings
from deploy.remote.doctor.findings import Finding

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


def examine(*, directory: Path, index: Path | None, allow_hosts: tuple[str, ...] = ()) -> list[Finding]:
    """Run every check.

    Args:
        directory: where a run would be written.
        index: a sample index to check against its shards, or None.
        allow_hosts: hosts of its shards that may have private addresses.
    """
    findings = [finding for check in CHECKS for finding in check(directory)]
    return findings + (list(data_findings(index, allow_hosts=allow_hosts)) if index else [])


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


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    _versions,
    _faiss,
    machine.processors,
    machine.memory,
    machine.gpu,
    machine.decoder,
    machine.dali,
    machine.token,
    machine.ports,
)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
