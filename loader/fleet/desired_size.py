"""What a fleet was last asked for, in a file: a fleet that is restarted goes on with it."""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_FOLDER_PREFIX: Final = "tempera-fleet-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """The size in force, and how far the fleet has counted its events."""

    size: int
    """Loaders wished for."""
    author: str
    """Who asked for it."""
    reason: str
    """Why."""
    sequence: int
    """Number of the last event: those that follow go on counting, so nobody who polls misses one."""


class WishFile:
    """One wish, replaced whole.

    Args:
        path: The file; its folder exists.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def forget(self) -> None:
        """Remove the file: a new run starts with its own size."""
        self._path.unlink(missing_ok=True)

    def load(self) -> Wish | None:
        """Return the last wish, or None when there is none that can be read."""
        try:
            return Wish(**json.loads(self._path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("the fleet starts at its first size: %s cannot be read (%s)", self._path, error)
            return None

    def save(self, wish: Wish) -> None:
        """Write a wish; a folder that cannot be written only costs the memory."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(asdict(wish)))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("the fleet's size is not remembered: %s", error)

    def close(self) -> None:
        """Do nothing: the file is the caller's, who may look at it later."""


class TemporaryWishFile(WishFile):
    """A wish that is kept no longer than the process that makes this object lives.

    The file has a folder of its own below the one for temporary files, which the process holds locked. `close` and
    the end of the process remove it. A killed process cannot, but its lock is gone: the next one removes the folder.
    Sent to another process, it is a plain `WishFile`.
    """

    def __init__(self) -> None:
        _sweep()
        self._owner, self._lock = os.getpid(), -1
        while self._lock < 0:
            folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
            self._lock = _locked(folder)  # in vain if somebody who sweeps came between the two
        super().__init__(folder / "fleet.json")
        atexit.register(self.close)

    def __reduce__(self) -> tuple[type[WishFile], tuple[Path]]:
        return WishFile, (self._path,)

    def close(self) -> None:
        """Remove the file and its folder; the fleet must have ended."""
        atexit.unregister(self.close)
        if self._lock >= 0 and os.getpid() == self._owner:  # not in a fork
            shutil.rmtree(self._path.parent, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _sweep() -> None:
    """Remove the folders of this user that nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        lock = _locked(folder)
        if lock >= 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int:
    """Return the descriptor that holds a folder locked while it is open; -1 if it is not to be had."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # it is gone, or another user's
        return -1
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.is_dir():
                return descriptor
    except OSError:  # its process lives
        pass
    os.close(descriptor)
    return -1
