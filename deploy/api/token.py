"""The API's token: one file in the run directory that only its owner reads, compared in constant time.

The file is the truth while the server runs: `tempera token --renew` writes another, and from then on who holds the old
one is refused.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

RECHECK_S = 0.5
"""How long an old token may still be taken after the file has changed."""


def write_token(path: Path, token: str = "") -> str:
    """Write a token, a new one by default, into a file that only its owner reads; returns it."""
    token = token or secrets.token_urlsafe(32)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    aside.replace(path)
    return token


class TokenFile:
    """Tells whether a request bears the token that is in the file now."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._read_s = self._clock()
        self._token = path.read_text().strip().encode()

    def matches(self, candidate: bytes) -> bool:
        """Whether this is the token. A file that is gone or empty lets nobody in."""
        now = self._clock()
        if now - self._read_s >= RECHECK_S:
            self._read_s = now
            try:
                self._token = self._path.read_text().strip().encode()
            except OSError:
                self._token = b""
        return hmac.compare_digest(candidate, self._token) and bool(self._token)
