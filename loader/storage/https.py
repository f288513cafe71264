"""Shards behind HTTPS, read by byte range.

1. A URL is located (S3's are signed anew from time to time) and requested over a kept connection.
2. Redirects are followed by hand, and each target is checked like the first URL (see `addresses`).
3. Network faults are retried until a deadline, and are then a StorageUnavailable: never a bad sample.
4. A shard whose length or ETag changes while it is open is a StaleIndexError.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urljoin, urlsplit

from loader.errors import StaleIndexError, StorageUnavailable
from loader.storage.connections import TIMEOUT_S, Connection, Connections

DEADLINE_S: Final = 25.0
"""Retries end this long after the first try: before a stream would report a stall."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0
_TRY_TIMEOUTS_S: Final = (1.5, 1.5, 1.5, 3.0, 6.0)
"""Longest wait of each try for the next bytes; TIMEOUT_S after these. Most hangs affect one request only, so an early
second try helps; storage that is slow for all requests still gets its time later."""
_MAX_REDIRECTS: Final = 5
_RETRIED: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_SLOWEST_BYTES_PER_S: Final = 1 << 20
"""A body may take the usual timeout plus its length at this speed."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

Locate = Callable[[], str]
"""Returns the URL to request now; signed ones expire."""


class HttpShard:
    """A shard behind HTTPS, at the URL that `locate` returns, or else at `name`.

    Messages use the name, since URLs may hold a signature. `close` leaves the shared connections open.
    """

    def __init__(
        self, name: str, *, connections: Connections, locate: Locate | None = None, deadline_s: float = DEADLINE_S
    ) -> None:
        self._name, self._connections, self._deadline_s = name, connections, deadline_s
        self._locate = locate or (lambda: name)
        self._etag: str | None = None
        self.num_bytes = 0
        # One byte is enough to learn the length and the ETag. HEAD would not do: signed URLs are for GET only.
        self.num_bytes = self._retry(0, 1)[1]

    def read_at(self, offset: int, size: int) -> bytes:
        size = min(size, self.num_bytes - offset)
        return self._retry(offset, size)[0] if size > 0 else b""

    def close(self) -> None:
        """Do nothing: connections are shared."""

    def _retry(self, offset: int, size: int) -> tuple[bytes, int]:
        """Fetch a range until it succeeds or the deadline is over. Return its bytes and the length of the shard."""
        started, pause_s, timeouts = time.monotonic(), _FIRST_PAUSE_S, iter(_TRY_TIMEOUTS_S)
        while True:
            try:
                return self._fetch(offset, size, min(next(timeouts, TIMEOUT_S), TIMEOUT_S))
            except FileNotFoundError:
                raise
            except ssl.SSLCertVerificationError as error:
                raise StorageUnavailable(f"{self._name}: {error}. SSL_CERT_FILE names further authorities.") from error
            except (OSError, http.client.HTTPException, _TryAgain) as error:
                if time.monotonic() - started + pause_s > self._deadline_s:
                    raise StorageUnavailable(
                        f"{self._name} did not deliver within {self._deadline_s:g} s: {error!r}. Is it reachable?"
                    ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _fetch(self, offset: int, size: int, timeout_s: float) -> tuple[bytes, int]:
        """Fetch a range once, following redirects."""
        url = self._locate()
        for _ in range(_MAX_REDIRECTS):
            connection, response = self._request(url, offset, size, timeout_s)
            try:
                if response.status in (301, 302, 303, 307, 308):
                    # Read to its end, so that the connection can be kept.
                    _read_body(response, min(response.length or 0, 1 << 16), TIMEOUT_S)
                    target = response.headers.get("Location")
                    if target is None:
                        region = response.headers.get("x-amz-bucket-region")
                        hint = f" Its bucket is in {region}: set AWS_REGION." if region else ""
                        raise StorageUnavailable(f"{self._name} redirects without a target.{hint}")
                    url = urljoin(url, target)
                    continue
                return self._checked_body(response, offset, size, timeout_s)
            finally:
                # Unread bytes would be taken for the next answer, so such a connection cannot serve again.
                if response.isclosed() and connection.sock is not None:
                    self._connections.give(connection)
                else:
                    connection.close()
        raise StorageUnavailable(f"{self._name} redirects more than {_MAX_REDIRECTS} times")

    def _request(
        self, url: str, offset: int, size: int, timeout_s: float
    ) -> tuple[Connection, http.client.HTTPResponse]:
        """Send a ranged request, over an idle connection first."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        for fresh in (False, True):
            connection = self._connections.take(url, fresh=fresh)
            try:
                if connection.sock is None:
                    connection.connect()
                connection.sock.settimeout(timeout_s)
                connection.request("GET", path, headers={"Range": f"bytes={offset}-{offset + size - 1}"})
                return connection, connection.getresponse()
            except (ConnectionError, http.client.HTTPException):
                # Servers close idle connections, so a fault on a used one says nothing: try again on a new one.
                connection.close()
                if not connection.used:
                    raise
            except BaseException:
                connection.close()
                raise
        raise AssertionError("a fresh connection is never a used one")

    def _checked_body(
        self, response: http.client.HTTPResponse, offset: int, size: int, timeout_s: float
    ) -> tuple[bytes, int]:
        """Return the body, after checking that it is the requested range of the shard that was opened."""
        status = response.status
        if status in _RETRIED:
            raise _TryAgain(f"HTTP {status}")
        if status in (404, 410):
            raise FileNotFoundError(f"{self._name}: HTTP {status}")
        if status in (401, 403):
            raise StorageUnavailable(f"{self._name} answered HTTP {status}: check the credentials, and the clock")
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status != 206 or found is None:
            raise StorageUnavailable(f"{self._name} answered HTTP {status} to a ranged read; it must serve byte ranges")
        first, last, total = (int(number) for number in found.groups())
        # The first answer sets both; every later one must be of the same version.
        etag = response.headers.get("ETag")
        if self.num_bytes and (etag != self._etag or total != self.num_bytes):
            raise StaleIndexError(
                f"{self._name} was replaced while it was read (ETag {self._etag} -> {etag}). Index again."
            )
        data = _read_body(response, size, timeout_s)
        if (first, last - first + 1, len(data)) != (offset, size, size):
            raise _TryAgain(f"requested {size} bytes at {offset}, got {len(data)} at {first}")
        self._etag = etag
        return data, total


class _TryAgain(Exception):
    """A fault that may pass."""


def _read_body(response: http.client.HTTPResponse, size: int, timeout_s: float) -> bytes:
    """Read a body of `size` bytes. A trickle that keeps the socket alive must still end in time."""
    limit_s = timeout_s + size / _SLOWEST_BYTES_PER_S
    deadline = time.monotonic() + limit_s
    parts, missing = [], size
    while missing and (part := response.read1(missing)):
        parts.append(part)
        missing -= len(part)
        if missing and time.monotonic() > deadline:
            raise _TryAgain(f"{missing} of {size} bytes were missing after {limit_s:.0f} s")
    if response.length == 0:
        response.read()  # marks the response as finished, so that its connection takes the next request
    return b"".join(parts)
