"""The processes of a run, found by a mark in their environment, so that strays are found after their parents died."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

MARK = "TEMPERA_SOAK"
SHARED = "/dev/shm/"
ROLES = {
    "loader": "ray::LoaderActor",
    "fleet": "ray::LoaderFleet",
    "selection": "ray::SelectionService",
    "trainer": "ray::RayTrainWorker",
}
"""What a role's process calls itself."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds at a moment."""

    time: float
    """Seconds since the epoch."""
    pid: int
    role: str
    """A key of ROLES, or "driver"."""
    private_bytes: int
    """Resident memory that it shares with nobody."""
    descriptors: int


class Processes:
    """The processes that carry one mark."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the process that starts the run; its children inherit them, and find `tests`."""
        return os.environ | {MARK: self.mark, "PYTHONPATH": str(Path(__file__).parents[2])}

    def alive(self) -> list[int]:
        """Process ids that carry the mark."""
        wanted = f"{MARK}={self.mark}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if wanted in _read(pid, "environ")]

    def of(self, role: str) -> list[int]:
        """Process ids of a role, a key of ROLES."""
        return [pid for pid, found in self.roles().items() if found == role]

    def roles(self) -> dict[int, str]:
        """Process id -> role, of all that have one."""
        titles = {pid: _read(pid, "cmdline") for pid in self.alive()}
        return {
            pid: role
            for pid, title in titles.items()
            for role, name in ROLES.items()
            if title.startswith(name.encode())
        }

    def usage(self, pid: int, role: str) -> Usage | None:
        """What a process holds; None when it is gone."""
        try:
            pages = list(map(int, (Path("/proc") / str(pid) / "statm").read_text().split()))
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            private = (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return None
        return Usage(time=time.time(), pid=pid, role=role, private_bytes=private, descriptors=descriptors)

    def shared_files(self) -> set[str]:
        """Files in shared memory that some process of the run has mapped."""
        lines = (line for pid in self.alive() for line in _read(pid, "maps").decode(errors="replace").splitlines())
        return {line.split(SHARED, 1)[1] for line in lines if SHARED in line and not line.endswith("(deleted)")}


def _read(pid: int, name: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except OSError:  # gone, or not ours
        return b""
