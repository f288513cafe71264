"""What a fleet was last asked for, in a file: a fleet that is restarted goes on with it."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)


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
