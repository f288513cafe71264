"""NodeWindows: windows shared by the processes of one node; the first to need one asks the service, the others map it.

A window never changes once it is drawn, so a copy is as good as the service's: however many ranks a node has, the
service is asked once and the memory is taken once. Copies lie in a folder of the user's own below the one for temporary
files; the newest few are kept. Whatever goes wrong with the folder, the service is asked instead.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from scoring.records import Window

log = logging.getLogger(__name__)

MAGIC = b"TEMPWIN\n"
PREFIX = struct.Struct("<8sQ")
KEPT_WINDOWS = 4
WAIT_S = 5.0
"""How long a process waits for another that is asking; then it asks by itself."""
POLL_S = 0.01
ABANDONED_S = 86_400.0
"""A run's folder in which nothing was written for so long is removed by the next run."""


class NodeWindows:
    """Copies of one run's windows on this node."""

    def __init__(self, run: str, *, root: Path | None = None) -> None:
        """Name the run by something that no other run has; folders are made when they are first needed."""
        self._root = root or Path(tempfile.gettempdir()) / f"tempera-windows-{os.getuid()}"
        self._folder = self._root / run

    def get(self, index: int, ask: Callable[[], Window]) -> Window:
        """The window from this node's copy; `ask` fetches it from the service where there is none yet."""
        try:
            window = self._shared(index, ask)
        except OSError as error:
            log.warning("windows cannot be shared on this node (%s); the service is asked for each", error)
            window = None
        return ask() if window is None else window

    def remove(self) -> None:
        """Delete this run's copies; who has one mapped keeps it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _shared(self, index: int, ask: Callable[[], Window]) -> Window | None:
        """The copy, made if nobody makes it; None when another process takes too long to."""
        path = f"{self._folder}/{index:012d}"
        window = read_window(f"{path}.window")
        if window is not None:
            return window
        deadline = time.monotonic() + WAIT_S
        with self._open_claim(f"{path}.lock") as claim:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(POLL_S)
                    window = read_window(f"{path}.window")
                    if window is not None:
                        return window
                else:
                    window = read_window(f"{path}.window")
                    return self._fetch(Path(f"{path}.window"), ask) if window is None else window
        return None

    def _open_claim(self, path: str) -> IO[bytes]:
        try:
            return open(path, "ab")
        except FileNotFoundError:
            self._make_folder()
            return open(path, "ab")

    def _fetch(self, path: Path, ask: Callable[[], Window]) -> Window:
        window = ask()
        try:
            aside = path.with_suffix(f".{os.getpid()}")
            aside.write_bytes(window_bytes(window))
            os.replace(aside, path)
            for old in sorted(self._folder.glob("*.window"))[:-KEPT_WINDOWS]:
                old.unlink(missing_ok=True)
                old.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            log.warning("window %d cannot be shared on this node: %s", window.index, error)
        return window

    def _make_folder(self) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)
        status = self._root.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(f"{self._root} must be this user's alone")
        for other in self._root.iterdir():
            if time.time() - other.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(other, ignore_errors=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)


def window_bytes(window: Window) -> bytes:
    """A window as bytes: prefix, JSON of its facts, ids, probabilities."""
    facts = {name: value for name, value in asdict(window).items() if not isinstance(value, np.ndarray)}
    facts |= {"num_draws": len(window.sample_ids), "num_spares": len(window.spare_ids)}
    header = json.dumps(facts).encode()
    header += b" " * (-(PREFIX.size + len(header)) % 8)
    ids = np.concatenate([window.sample_ids, window.spare_ids]).astype("<i8", copy=False)
    probability = np.concatenate([window.probability, window.spare_probability]).astype("<f8", copy=False)
    return PREFIX.pack(MAGIC, len(header)) + header + ids.tobytes() + probability.tobytes()


def read_window(path: str | Path) -> Window | None:
    """Map what `window_bytes` made; None where there is nothing, or something else."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # ValueError: the file is empty
        return None
    if len(mapped) < PREFIX.size:
        return None
    magic, length = PREFIX.unpack_from(mapped)
    start = PREFIX.size + length
    if magic != MAGIC or start > len(mapped):
        return None
    facts: dict[str, Any] = json.loads(mapped[PREFIX.size : start])
    draws, spares = facts.pop("num_draws"), facts.pop("num_spares")
    total = draws + spares
    if len(mapped) != start + 16 * total:
        return None
    ids = np.frombuffer(mapped, "<i8", total, start)
    probability = np.frombuffer(mapped, "<f8", total, start + 8 * total)
    return Window(
        **facts,
        sample_ids=ids[:draws],
        spare_ids=ids[draws:],
        probability=probability[:draws],
        spare_probability=probability[draws:],
    )
