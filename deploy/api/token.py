"""The API's token: one file in the run directory that only its owner reads, compared in constant time.

The server reads the file while it runs: after `tempera token --renew` has written a new token the old one is refused.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

RECHECK_S = 0.5
"""Most seconds that an old token is accepted after the file has changed."""


def write_token(path: Path, token: str = "") -> str:
    """Write a token, by default a new one, into a file that only its owner reads, and return it."""
    token = token or secrets.token_urlsafe(32)
    # Create with mode 0600, then rename: no other user can read it, and no reader sees half of it.
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    aside.replace(path)
    return token


class TokenFile:
    """Compares requests with the token that is in the file now."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._read_s = self._clock()
        self._token = path.read_text().strip().encode()

    def matches(self, candidate: bytes) -> bool:
        """Return whether this is the token. With a file that is gone or empty no token is right."""
        now = self._clock()
        if now - self._read_s >= RECHECK_S:
            self._read_s = now
            try:
                self._token = self._path.read_text().strip().encode()
            except OSError:
                self._token = b""
        # Two empty tokens compare equal; a missing file must refuse everyone.
        return hmac.compare_digest(candidate, self._token) and bool(self._token)
