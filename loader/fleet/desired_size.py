"""The desired size of a fleet in a file, so that a fleet whose process is restarted keeps it."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DesiredSize:
    """The size in force, and the last event that the fleet numbered."""

    size: int
    """Loaders."""
    author: str
    """Person or component that set it."""
    reason: str
    """Why."""
    sequence: int
    """Number of the last event. A restarted fleet continues from it, so that readers of events miss none."""


class DesiredSizeFile:
    """A JSON file with one `DesiredSize`, replaced whole.

    Args:
        path: The file; its folder exists.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def forget(self) -> None:
        """Remove the file: a new run starts with its own size."""
        self._path.unlink(missing_ok=True)

    def load(self) -> DesiredSize | None:
        """Return the saved size, or None when there is no readable one."""
        try:
            return DesiredSize(**json.loads(self._path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("the fleet starts at its first size: %s cannot be read (%s)", self._path, error)
            return None

    def save(self, desired: DesiredSize) -> None:
        """Write a size. When the folder is not writable the fleet works on and only forgets its size at a restart."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(asdict(desired)))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("the fleet's size is not remembered: %s", error)
