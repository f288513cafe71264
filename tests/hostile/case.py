"""One hostile input: where it is given, and what must come of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ACCEPTED, SUBSTITUTED, EITHER = "accepted", "substituted", "accepted or substituted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A hostile input with its verdict."""

    name: str
    """Family and what is wrong, as in "tar/negative size"."""
    place: str
    """Where it is given: a name in `judge.PLACES`."""
    verdict: str
    """What must come of it: accepted, substituted, the name of an error's class, or an HTTP status."""
    says: str = ""
    """Part of the message, or of the account of what was accepted."""
    make: Callable[[], bytes]
    """Makes the bytes; a value (a URL, scores, a control) is JSON."""
    suffix: str = ".bin"
    """Suffix of the file that holds it."""


def rng(name: str) -> random.Random:
    """Randomness of a case's own: the same whichever other cases there are."""
    return random.Random(f"hostile {name}")


Family = Callable[[], Iterator[Case]]
