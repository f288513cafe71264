"""Shards that are not files: HTTPS by the standard library, S3 and Google Cloud Storage by obstore.

Every URL is checked before anything is opened: only known schemes, no shell pipes, no brace patterns, and no
private, loopback, link-local or metadata address unless its host was allowed by name. Redirects are followed by
hand, and each target is checked like the first. Faults of the network are retried until a deadline, then they are a
StorageUnavailable: never a bad sample.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from loader.errors import StaleIndexError, StorageUnavailable

SCHEMES: Final = ("file", "https", "s3", "gs")
_TIMEOUT_S: Final = 10.0
_DEADLINE_S: Final = 25.0
"""Retries end so long after the first try: before a stream would call it a stall."""
_FIRST_PAUSE_S: Final = 0.1
_MAX_REDIRECTS: Final = 5
_RETRIED: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def check_url(url: str, *, allow_hosts: tuple[str, ...] = ()) -> SplitResult:
    """Return the parts of a shard's URL if it may be opened.

    Args:
        url: A path or URL.
        allow_hosts: Hosts that may be private, and may be reached by plain http.

    Raises:
        ValueError: If the scheme, the form or the host is refused.
    """
    if re.match(r"\s*pipe:", url, re.IGNORECASE) or "\0" in url or re.search(r"\{[^}]*(\.\.|,)[^}]*\}", url):
        raise ValueError(f"pipes and brace patterns are not shards; got {url[:100]!r}. List the shards one by one.")
    parts = urlsplit(url)
    if "://" not in url:
        return SplitResult("file", "", url, "", "")
    allowed = parts.hostname in allow_hosts
    if parts.scheme not in SCHEMES and not (parts.scheme == "http" and allowed):
        raise ValueError(f"shard URLs must be {', '.join(SCHEMES)}; got {parts.scheme!r} in {url[:100]!r}")
    if parts.scheme in ("http", "https") and not allowed:
        _check_public(parts.hostname or "", url)
    return parts


class HttpShard:
    """A shard behind HTTPS, read by range. One connection a thread."""

    def __init__(self, url: str, *, allow_hosts: tuple[str, ...], deadline_s: float = _DEADLINE_S) -> None:
        self._url, self._allow_hosts, self._deadline_s = url, allow_hosts, deadline_s
        self._local = threading.local()
        self._etag: str | None = None
        self.num_bytes = 0
        self.num_bytes = self._retry(lambda: self._fetch(0, 1))[1]

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""
        size = min(size, self.num_bytes - offset)
        if size <= 0:
            return b""
        return self._retry(lambda: self._fetch(offset, size))[0]

    def close(self) -> None:
        """Close this thread's connection; others close when their threads end."""
        self._disconnect()

    def _retry(self, fetch: Callable[[], tuple[bytes, int]]) -> tuple[bytes, int]:
        started, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return fetch()
            except (OSError, http.client.HTTPException, _TryAgain) as error:
                self._disconnect()
                if isinstance(error, FileNotFoundError):
                    raise
                if time.monotonic() - started + pause_s > self._deadline_s:
                    raise StorageUnavailable(
                        f"{self._url} did not deliver within {self._deadline_s:g} s: {error!r}. Is it reachable?"
                    ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 3.0)

    def _fetch(self, offset: int, size: int) -> tuple[bytes, int]:
        """Return the bytes of a range and the length of the shard, following redirects."""
        url = self._url
        for _ in range(_MAX_REDIRECTS):
            response = self._request(url, offset, size)
            if response.status in (301, 302, 303, 307, 308):
                response.read()
                url = urljoin(url, response.headers.get("Location", ""))
                continue
            return self._body(response, offset, size)
        raise StorageUnavailable(f"{self._url} redirects more than {_MAX_REDIRECTS} times")

    def _request(self, url: str, offset: int, size: int) -> http.client.HTTPResponse:
        parts = check_url(url, allow_hosts=self._allow_hosts)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{self._url} redirects to {url[:100]!r}; only https is followed")
        connection = self._connection(parts)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Range": f"bytes={offset}-{offset + size - 1}"})
        return connection.getresponse()

    def _body(self, response: http.client.HTTPResponse, offset: int, size: int) -> tuple[bytes, int]:
        """Check that the answer is the range that was asked for, of the shard that was opened."""
        status = response.status
        if status in _RETRIED:
            raise _TryAgain(f"HTTP {status}")
        if status in (404, 410):
            raise FileNotFoundError(f"{self._url}: HTTP {status}")
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status != 206 or found is None:
            raise StorageUnavailable(f"{self._url} answered HTTP {status} to a ranged read; it must serve byte ranges")
        first, last, total = (int(number) for number in found.groups())
        etag = response.headers.get("ETag")
        if self.num_bytes and (etag != self._etag or total != self.num_bytes):
            raise StaleIndexError(
                f"{self._url} was replaced while it was read (ETag {self._etag} -> {etag}). Index again."
            )
        data = _read_body(response, size)
        if (first, last - first + 1, len(data)) != (offset, size, size):
            raise _TryAgain(f"asked for {size} bytes at {offset}, got {len(data)} at {first}")
        self._etag = etag
        return data, total

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        """Return this thread's connection to a host; it is kept open between reads."""
        target = (parts.scheme, parts.netloc)
        if getattr(self._local, "target", None) != target:
            self._disconnect()
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._local.connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
            self._local.target = target
        connection: http.client.HTTPConnection = self._local.connection
        return connection

    def _disconnect(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
        self._local.connection = self._local.target = None


class BucketShard:
    """An object in an obstore store: S3, Google Cloud Storage, or whatever else obstore speaks."""

    def __init__(self, store: Any, path: str, *, name: str) -> None:
        self._store, self._path, self._name = store, path, name
        self.num_bytes: int = self._call(lambda obstore: obstore.head(store, path)["size"])

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the range; fewer bytes only past the end."""
        size = min(size, self.num_bytes - offset)
        if size <= 0:
            return b""
        return bytes(self._call(lambda obstore: obstore.get_range(self._store, self._path, start=offset, length=size)))

    def close(self) -> None:
        """Nothing to release: connections belong to the store."""

    def _call(self, request: Callable[[Any], Any]) -> Any:
        obstore = _obstore()
        try:
            return request(obstore)
        except FileNotFoundError:
            raise
        except (OSError, obstore.exceptions.BaseError) as error:
            raise StorageUnavailable(f"{self._name} could not be read: {error}") from error


def open_bucket(parts: SplitResult) -> BucketShard:
    """Open s3://bucket/key or gs://bucket/key. Credentials and region come from the environment."""
    _obstore()
    from obstore.store import from_url  # noqa: PLC0415 - optional: only buckets need it

    store = from_url(
        f"{parts.scheme}://{parts.netloc}",
        client_options={"timeout": timedelta(seconds=_TIMEOUT_S)},
        retry_config={"retry_timeout": timedelta(seconds=_DEADLINE_S), "max_retries": 20},
    )
    return BucketShard(store, parts.path.lstrip("/"), name=parts.geturl())


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


def _read_body(response: http.client.HTTPResponse, size: int) -> bytes:
    """Read a body of `size` bytes; a trickle that keeps the socket alive still has to end in time."""
    deadline = time.monotonic() + _TIMEOUT_S
    parts, missing = [], size
    while missing and (part := response.read1(missing)):
        parts.append(part)
        missing -= len(part)
        if missing and time.monotonic() > deadline:
            raise _TryAgain(f"{missing} of {size} bytes were missing after {_TIMEOUT_S:g} s")
    if not missing:
        response.read()  # marks the response as finished, so that its connection takes the next request
    return b"".join(parts)


class _TryAgain(Exception):
    """A fault that may pass."""


def _check_public(host: str, url: str) -> None:
    """Refuse hosts that resolve to an address which is not on the public internet."""
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StorageUnavailable(f"host {host!r} of {url[:100]!r} cannot be resolved: {error}") from error
    for *_, address in found:
        if not ipaddress.ip_address(str(address[0]).split("%")[0]).is_global:
            raise ValueError(
                f"{host!r} is {address[0]}, which is not a public address. If it is meant, allow the host by name."
            )


def _obstore() -> Any:
    try:
        import obstore  # noqa: PLC0415
        import obstore.exceptions  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("s3:// and gs:// shards need obstore: `pip install obstore`") from error
    return obstore
