"""The desired size of a fleet in a JSON file, so that a fleet whose process is restarted keeps it."""

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
    author: str
    reason: str
    sequence: int
    """Number of the last event. A restarted fleet continues from it, so that readers of events miss none."""


def load_desired_size(path: Path) -> DesiredSize | None:
    """Return the saved size, or None when there is no readable one."""
    try:
        return DesiredSize(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    # TypeError: the file has other fields, from another version. A fleet at its first size is better than none.
    except (OSError, ValueError, TypeError) as error:
        log.warning("the fleet starts at its first size: %s cannot be read (%s)", path, error)
        return None


def save_desired_size(path: Path, desired: DesiredSize) -> None:
    """Replace the file. When its folder is not writable the fleet works on and only forgets its size at a restart."""
    # Written beside it and renamed: a process that is killed half-way leaves the old size and not half a file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(asdict(desired)))
        temporary.replace(path)
    except OSError as error:
        log.warning("the fleet's size is not remembered: %s", error)
