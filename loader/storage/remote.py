"""Shards that are not files: HTTPS by range, S3 by signed HTTPS requests, Google Cloud Storage by obstore.

Redirects are followed by hand, and each target is checked like the first (see `addresses`). Faults of the network are
retried until a deadline, then they are a StorageUnavailable: never a bad sample. A shard whose length or ETag changes
while it is open is a StaleIndexError.
"""

from __future__ import annotations

import http.client
import os
import re
import ssl
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import obstore
import obstore.exceptions
from obstore.store import GCSStore, S3Store

from loader.errors import StaleIndexError, StorageUnavailable
from loader.storage.connections import TIMEOUT_S, Connection, Connections

_DEADLINE_S: Final = 25.0
"""Retries end so long after the first try: before a stream would call it a stall."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0
_PATIENCE_S: Final = (1.5, 1.5, 1.5, 3.0, 6.0)
"""How long each try waits for the next bytes, later ones TIMEOUT_S: most hangs are a request's own, and another try
finds storage healed. One that is slow for all still gets its time."""
_MAX_REDIRECTS: Final = 5
_RETRIED: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_SLOWEST_BYTES_PER_S: Final = 1 << 20
"""A body gets the usual timeout and its length at this speed."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_SIGNED_FOR_S: Final = 3600.0
_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

Locate = Callable[[], str]
"""Returns the URL to ask now; signed ones expire."""


class HttpShard:
    """A shard behind HTTPS, read by range.

    Args:
        name: Names the shard in messages, where its URL may hold a signature.
        locate: Where it is.
        connections: Shared with other shards; without it the shard has its own, which `close` closes.
        allow_hosts: Hosts that may be private, for connections of its own.
        deadline_s: Retries end so long after the first try.
    """

    def __init__(
        self,
        name: str,
        *,
        locate: Locate | None = None,
        connections: Connections | None = None,
        allow_hosts: tuple[str, ...] = (),
        deadline_s: float = _DEADLINE_S,
    ) -> None:
        self._name, self._deadline_s = name, deadline_s
        self._locate = locate or (lambda: name)
        self._connections = connections or Connections(allow_hosts=allow_hosts)
        self._owns_connections = connections is None
        self._etag: str | None = None
        self.num_bytes = 0
        self.num_bytes = self._retry(lambda patience_s: self._fetch(0, 1, patience_s))[1]

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""
        size = min(size, self.num_bytes - offset)
        if size <= 0:
            return b""
        return self._retry(lambda patience_s: self._fetch(offset, size, patience_s))[0]

    def close(self) -> None:
        """Close its own connections; shared ones stay."""
        if self._owns_connections:
            self._connections.close()

    def _retry(self, fetch: Callable[[float], tuple[bytes, int]]) -> tuple[bytes, int]:
        started, pause_s, patience = time.monotonic(), _FIRST_PAUSE_S, iter(_PATIENCE_S)
        while True:
            try:
                return fetch(min(next(patience, TIMEOUT_S), TIMEOUT_S))
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

    def _fetch(self, offset: int, size: int, patience_s: float) -> tuple[bytes, int]:
        """Return the bytes of a range and the length of the shard, following redirects."""
        url = self._locate()
        for _ in range(_MAX_REDIRECTS):
            connection, response = self._ask(url, offset, size, patience_s)
            try:
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, self._redirect(response))
                    continue
                return self._body(response, offset, size, patience_s)
            finally:
                self._settle(connection, response)
        raise StorageUnavailable(f"{self._name} redirects more than {_MAX_REDIRECTS} times")

    def _ask(self, url: str, offset: int, size: int, patience_s: float) -> tuple[Connection, http.client.HTTPResponse]:
        connection = self._connections.take(url)
        try:
            return connection, _request(connection, url, offset, size, patience_s)
        except (ConnectionError, http.client.HTTPException):
            connection.close()
            if not connection.used:
                raise
        # The server had closed a connection that was idle, which says nothing: ask again on a new one.
        connection = self._connections.take(url, fresh=True)
        try:
            return connection, _request(connection, url, offset, size, patience_s)
        except BaseException:
            connection.close()
            raise

    def _settle(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        """Keep a connection whose answer was read to its end; close any other."""
        if response.isclosed() and connection.sock is not None:
            self._connections.give(connection)
        else:
            connection.close()

    def _redirect(self, response: http.client.HTTPResponse) -> str:
        _read_body(response, min(response.length or 0, 1 << 16), TIMEOUT_S)
        target = response.headers.get("Location")
        if target is None:
            region = response.headers.get("x-amz-bucket-region")
            hint = f" Its bucket is in {region}: set AWS_REGION." if region else ""
            raise StorageUnavailable(f"{self._name} redirects without saying where.{hint}")
        return target

    def _body(self, response: http.client.HTTPResponse, offset: int, size: int, patience_s: float) -> tuple[bytes, int]:
        """Check that the answer is the range that was asked for, of the shard that was opened."""
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
        etag = response.headers.get("ETag")
        if self.num_bytes and (etag != self._etag or total != self.num_bytes):
            raise StaleIndexError(
                f"{self._name} was replaced while it was read (ETag {self._etag} -> {etag}). Index again."
            )
        data = _read_body(response, size, patience_s)
        if (first, last - first + 1, len(data)) != (offset, size, size):
            raise _TryAgain(f"asked for {size} bytes at {offset}, got {len(data)} at {first}")
        self._etag = etag
        return data, total


class BucketShard:
    """An object in an obstore store, pinned to the version that was opened."""

    def __init__(self, store: Any, path: str, *, name: str) -> None:
        self._store, self._path, self._name = store, path, name
        found = self._call(lambda: obstore.head(store, path))
        self.num_bytes: int = found["size"]
        self._etag: str | None = found["e_tag"]

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""
        size = min(size, self.num_bytes - offset)
        if size <= 0:
            return b""
        return bytes(self._call(lambda: self._get(offset, size)))

    def close(self) -> None:
        """Nothing to release: connections belong to the store."""

    def _get(self, offset: int, size: int) -> Any:
        """Return a range of the version that was opened. Not every server heeds the condition."""
        options: Any = {"range": (offset, offset + size)} | ({"if_match": self._etag} if self._etag else {})
        answer = obstore.get(self._store, self._path, options=options)
        if (answer.meta["size"], answer.meta["e_tag"]) != (self.num_bytes, self._etag):
            raise self._replaced()
        return answer.bytes()

    def _replaced(self) -> StaleIndexError:
        return StaleIndexError(f"{self._name} was replaced while it was read. Index again.")

    def _call(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except FileNotFoundError:
            raise
        except obstore.exceptions.PreconditionError as error:
            raise self._replaced() from error
        except (OSError, obstore.exceptions.BaseError) as error:
            raise StorageUnavailable(f"{self._name} could not be read: {error}") from error


def open_s3(parts: SplitResult, *, connections: Connections) -> HttpShard:
    """Open s3://bucket/key. Credentials, region and endpoint come from the environment (AWS_*).

    Requests are signed by obstore and sent by us: obstore would follow redirects to anywhere. An endpoint that the
    environment names may be private: whoever sets a process's environment is trusted with its network.

    Raises:
        ValueError: If the bucket's name is none.
    """
    _check_bucket(parts.netloc, r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", "S3 bucket names are letters, digits")
    locate = _SignedUrl(parts)
    if any(name in os.environ for name in _ENDPOINT_VARIABLES):
        connections = connections.trusting(urlsplit(locate()).hostname or "")
    return HttpShard(parts.geturl(), locate=locate, connections=connections)


def open_gs(parts: SplitResult) -> BucketShard:
    """Open gs://bucket/key. Credentials come from the environment (GOOGLE_*).

    obstore sends these requests itself, since signed URLs need a key that the machines of Google's cloud do not have.
    It follows redirects, but no shard's URL can name the host that would send one: requests go to Google's alone, or
    to an endpoint that the environment names.

    Raises:
        ValueError: If the bucket's name is none.
    """
    _check_bucket(
        parts.netloc, r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", "GCS bucket names are lower-case letters, digits"
    )
    store = GCSStore(
        parts.netloc,
        client_options={"timeout": timedelta(seconds=TIMEOUT_S)},
        retry_config={"retry_timeout": timedelta(seconds=_DEADLINE_S), "max_retries": 20},
    )
    return BucketShard(store, parts.path.lstrip("/"), name=parts.geturl())


def _check_bucket(name: str, pattern: str, rule: str) -> None:
    """Refuse what is no bucket's name, before it becomes part of an address."""
    if not re.fullmatch(pattern, name):
        raise ValueError(f"{rule}, '.', '_' and '-'; got {name[:100]!r}")


class ReadAhead:
    """Turns a walk of small, rising reads into few large ones. For one thread."""

    def __init__(self, read_at: Callable[[int, int], bytes], *, chunk_bytes: int = 8 << 20) -> None:
        self._read_at, self._chunk_bytes = read_at, chunk_bytes
        self._start, self._data = 0, b""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""
        if not self._start <= offset or offset + size > self._start + len(self._data):
            self._start, self._data = offset, self._read_at(offset, max(size, self._chunk_bytes))
        at = offset - self._start
        return self._data[at : at + size]


class _SignedUrl:
    """The URL of an S3 object, signed anew before the signature expires; unsigned with AWS_SKIP_SIGNATURE."""

    def __init__(self, parts: SplitResult) -> None:
        self._unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1")
        anyone: Any = {"access_key_id": "anyone", "secret_access_key": "none"} if self._unsigned else {}
        self._store = S3Store(parts.netloc, client_options={"timeout": timedelta(seconds=TIMEOUT_S)}, **anyone)
        self._name, self._path = parts.geturl(), parts.path.lstrip("/")
        self._url, self._renew_s = "", float("-inf")
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            if time.monotonic() > self._renew_s:
                try:
                    url = obstore.sign(self._store, "GET", self._path, timedelta(seconds=_SIGNED_FOR_S))
                except obstore.exceptions.BaseError as error:
                    raise StorageUnavailable(f"{self._name}: no credentials to sign with: {error}") from error
                self._url = url.partition("?")[0] if self._unsigned else url
                self._renew_s = time.monotonic() + _SIGNED_FOR_S / 6  # short-lived credentials end before the signature
            return self._url


class _TryAgain(Exception):
    """A fault that may pass."""


def _request(connection: Connection, url: str, offset: int, size: int, patience_s: float) -> http.client.HTTPResponse:
    if connection.sock is None:
        connection.connect()
    connection.sock.settimeout(patience_s)
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"Range": f"bytes={offset}-{offset + size - 1}"})
    return connection.getresponse()


def _read_body(response: http.client.HTTPResponse, size: int, patience_s: float) -> bytes:
    """Read a body of `size` bytes; a trickle that keeps the socket alive still has to end in time."""
    limit_s = patience_s + size / _SLOWEST_BYTES_PER_S
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
