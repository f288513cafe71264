"""What the doctor finds: one line each, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


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
    node: str = ""
    """Address and role of the cluster's node; empty for this machine."""
