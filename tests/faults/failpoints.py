"""Failpoints: named places at which tests make the product fail, to see that it survives.

The product raises audit events, `sys.audit(EVENT, name, ...)`, which cost some tens of nanoseconds without a hook. A
process with TEMPERA_FAILPOINTS set installs the hook: with "selection.append=kill@3,snapshot.write=enospc" it dies at
the third append to the run log, and the first write of a snapshot finds the disk full. With TEMPERA_FAILPOINTS_FIRED
naming a file, each place fires once in all processes together and is written there.

`environment` makes the variables for a run that a test starts as a process: Python itself (`injected/sitecustomize.py`)
installs the hook in it and in every process that it starts, Ray's workers included.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENT = "tempera.failpoint"
VARIABLE, FIRED = "TEMPERA_FAILPOINTS", "TEMPERA_FAILPOINTS_FIRED"
HANG_S = 60.0
ROOT, INJECTED = Path(__file__).parents[2], Path(__file__).parent / "injected"

PLACES = (
    "selection.append",
    "selection.appended",
    "snapshot.write",
    "snapshot.rename",
    "snapshot.renamed",
    "checkpoint.write",
    "checkpoint.state",
    "checkpoint.rename",
    "checkpoint.renamed",
    "loader.request",
    "loader.decoded",
    "loader.reply",
)
"""Before and after a commit of the run log; a snapshot's bytes, before and after it gets its name; before a
checkpoint's tensors and its state, before and after it gets its name; a request to a loader as it comes, once its
pixels are there, and as they are sent."""


def _segfault(seconds: float, details: tuple[Any, ...]) -> None:
    ctypes.string_at(0)


def _hang(seconds: float, details: tuple[Any, ...]) -> None:
    ctypes.PyDLL(None).usleep(int(1e6 * seconds))  # PyDLL keeps the GIL


def _die(seconds: float, details: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _partial(seconds: float, details: tuple[Any, ...]) -> None:
    """Half of the bytes reach the disk, and the process dies."""
    file, data = details
    file.write(bytes(data)[: len(bytes(data)) // 2])
    file.flush()
    os.fsync(file.fileno())
    _die(seconds, details)


def _refuse(number: int) -> Callable[[float, tuple[Any, ...]], None]:
    def refuse(seconds: float, details: tuple[Any, ...]) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


ACTIONS: Mapping[str, Callable[[float, tuple[Any, ...]], None]] = {
    "kill": _die,
    "segfault": _segfault,
    "hang": _hang,
    "sleep": lambda seconds, details: time.sleep(seconds),
    "enospc": _refuse(errno.ENOSPC),
    "eio": _refuse(errno.EIO),
    "partial": _partial,
}


@dataclass
class Failpoint:
    """What happens at a place."""

    name: str
    """One of PLACES."""
    action: str
    """One of ACTIONS."""
    seconds: float = HANG_S
    """Length of a hang or a sleep."""
    at: int = 1
    """Which passage of the place it is, in each process; 0 is every one."""
    passed: int = 0
    """Passages so far."""


class Failpoints:
    """The failpoints of a process. One hook serves them all; hooks cannot be removed, so `set` may empty it."""

    def __init__(self) -> None:
        self._points: dict[str, Failpoint] = {}
        self._lock = threading.Lock()
        self._listening = False
        self._fired: Path | None = None

    def set(self, text: str, *, fired: Path | None = None) -> None:
        """Choose what fails from now on.

        Args:
            text: as in TEMPERA_FAILPOINTS; empty for nothing.
            fired: file of the places that have fired; they do not fire again. None lets all fire, and notes nothing.

        Raises:
            ValueError: naming what cannot be read.
        """
        points = {point.name: point for point in map(parse, filter(None, text.split(",")))}
        self._points, self._fired = points, fired
        if points and not self._listening:
            self._listening = True
            sys.addaudithook(self._hook)

    def passed(self) -> dict[str, int]:
        """Place -> how often this process has come by, of the places that were chosen."""
        return {name: point.passed for name, point in self._points.items()}

    def _hook(self, event: str, details: tuple[Any, ...]) -> None:
        if event != EVENT or (point := self._points.get(details[0])) is None:
            return
        with self._lock:
            point.passed += 1
            if point.at not in (0, point.passed) or not self._first_time(point.name):
                return
        ACTIONS[point.action](point.seconds, details[1:])

    def _first_time(self, name: str) -> bool:
        """Note a firing, unless it was noted before, here or in another process."""
        if self._fired is None:
            return True
        with self._fired.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if name in file.read().split():
                return False
            file.write(f"{name}\n")
        return True


def parse(text: str) -> Failpoint:
    """Read one failpoint, `place=action`, `place=sleep:0.5` or `place=kill@3`.

    Raises:
        ValueError: an unknown place or action, or a number that is none.
    """
    name, _, rest = text.strip().partition("=")
    what, _, at = rest.partition("@")
    action, _, seconds = what.partition(":")
    if name not in PLACES or action not in ACTIONS or (action == "partial" and name != "snapshot.write"):
        raise ValueError(
            f"a failpoint must be PLACE=ACTION[:SECONDS][@N], with a place of {', '.join(PLACES)} and an action of "
            f"{', '.join(ACTIONS)} (partial for snapshot.write alone); got {text!r}."
        )
    return Failpoint(name=name, action=action, seconds=float(seconds or HANG_S), at=int(at or 1))


failpoints = Failpoints()
"""The failpoints of this process."""


def install() -> None:
    """Set the failpoints of the environment. Ray calls it in each worker process of a cluster that has some."""
    text, fired = os.environ.get(VARIABLE, ""), os.environ.get(FIRED)
    if text:
        failpoints.set(text, fired=Path(fired) if fired else None)


def runtime_env() -> dict[str, str] | None:
    """Return the `ray.init` option by which Ray's workers install the hook; None without failpoints."""
    return {"worker_process_setup_hook": f"{__name__}.install"} if os.environ.get(VARIABLE) else None


def environment(text: str, fired: Path) -> dict[str, str]:
    """Return the variables that make a command and all its children fail at these places, each place once."""
    paths = (INJECTED, ROOT, *filter(None, (os.environ.get("PYTHONPATH"),)))
    return {VARIABLE: text, FIRED: str(fired), "PYTHONPATH": os.pathsep.join(map(str, paths))}
