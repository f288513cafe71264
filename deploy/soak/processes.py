"""The processes of a run, found by a mark in their environment, so that strays are found after their parents died."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

MARK = "TEMPERA_SOAK"
ROLES = {
    "loader": "ray::LoaderActor",
    "fleet": "ray::LoaderFleet",
    "selection": "ray::SelectionService",
    "trainer": "ray::RayTrainWorker",
}
"""What a role's process calls itself."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds."""

    resident_bytes: int
    """Resident memory."""
    descriptors: int
    """Open file descriptors."""


class Processes:
    """The processes that carry one mark."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)

    @property
    def environment(self) -> dict[str, str]:
        """For the process that starts it all; its children inherit it."""
        return os.environ | {MARK: self.mark}

    def alive(self) -> list[int]:
        """Process ids that carry the mark."""
        wanted = f"{MARK}={self.mark}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if wanted in _read(pid, "environ")]

    def of(self, role: str) -> list[int]:
        """Process ids of a role, a key of ROLES."""
        title = ROLES[role].encode()
        return [pid for pid in self.alive() if _read(pid, "cmdline").startswith(title)]

    def usage(self, pid: int) -> Usage | None:
        """What a process holds; None when it is gone."""
        try:
            pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        except (OSError, IndexError):
            return None
        return Usage(resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"), descriptors=descriptors)


def _read(pid: int, name: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except OSError:  # gone, or not ours
        return b""
