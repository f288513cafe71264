"""Shards in buckets: S3 by signed HTTPS requests of our own, Google Cloud Storage by obstore."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import obstore
import obstore.exceptions
from obstore.store import GCSStore, S3Store

from loader.errors import StaleIndexError, StorageUnavailable
from loader.storage.connections import TIMEOUT_S, Connections
from loader.storage.https import DEADLINE_S, HttpShard, Locate

_SIGNED_FOR_S: Final = 3600.0
_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def open_s3(parts: SplitResult, *, connections: Connections) -> HttpShard:
    """Open s3://bucket/key. Credentials, region and endpoint come from the environment (AWS_*).

    obstore signs the requests and we send them, because obstore would follow redirects to any host. An endpoint that
    the environment names may be private: the environment of a process is trusted with its network.

    Raises:
        ValueError: If the bucket's name is not valid.
    """
    # The name becomes part of a host name: anything else in it could lead the request elsewhere.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", parts.netloc):
        raise ValueError(f"S3 bucket names are letters, digits, '.', '_' and '-'; got {parts.netloc[:100]!r}")
    locate = _signed_url(parts)
    if any(name in os.environ for name in _ENDPOINT_VARIABLES):
        connections = connections.trusting(urlsplit(locate()).hostname or "")
    return HttpShard(parts.geturl(), locate=locate, connections=connections)


def open_gs(parts: SplitResult) -> BucketShard:
    """Open gs://bucket/key. Credentials come from the environment (GOOGLE_*).

    obstore sends these requests itself, since signed URLs need a key that machines in Google's cloud do not have. It
    follows redirects, but no shard's URL can name the host that would send one: requests go only to Google, or to an
    endpoint that the environment names.

    Raises:
        ValueError: If the bucket's name is not valid.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", parts.netloc):
        raise ValueError(
            f"GCS bucket names are lower-case letters, digits, '.', '_' and '-'; got {parts.netloc[:100]!r}"
        )
    store = GCSStore(
        parts.netloc,
        client_options={"timeout": timedelta(seconds=TIMEOUT_S)},
        retry_config={"retry_timeout": timedelta(seconds=DEADLINE_S), "max_retries": 20},
    )
    return BucketShard(store, parts.path.lstrip("/"), name=parts.geturl())


class BucketShard:
    """An object in an obstore store, pinned to the version that was opened."""

    def __init__(self, store: Any, path: str, *, name: str) -> None:
        self._store, self._path, self._name = store, path, name
        with _storage_errors(name):
            found = obstore.head(store, path)
        self.num_bytes: int = found["size"]
        self._etag: str | None = found["e_tag"]

    def read_at(self, offset: int, size: int) -> bytes:
        size = min(size, self.num_bytes - offset)
        if size <= 0:
            return b""
        options: Any = {"range": (offset, offset + size)} | ({"if_match": self._etag} if self._etag else {})
        with _storage_errors(self._name):
            answer = obstore.get(self._store, self._path, options=options)
            # Not every server respects the condition, so the version is compared as well.
            if (answer.meta["size"], answer.meta["e_tag"]) != (self.num_bytes, self._etag):
                raise StaleIndexError(f"{self._name} was replaced while it was read. Index again.")
            return bytes(answer.bytes())

    def close(self) -> None:
        """Do nothing: connections belong to the store."""


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Raise obstore's errors as ours; a missing object stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except obstore.exceptions.PreconditionError as error:
        raise StaleIndexError(f"{name} was replaced while it was read. Index again.") from error
    except (OSError, obstore.exceptions.BaseError) as error:
        raise StorageUnavailable(f"{name} could not be read: {error}") from error


def _signed_url(parts: SplitResult) -> Locate:
    """Return a function that returns the URL of an S3 object, signed again before the signature expires.

    With AWS_SKIP_SIGNATURE in the environment the URL is unsigned, as public buckets take it.
    """
    unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1")
    # obstore builds URLs only with credentials; for unsigned ones any will do.
    anyone: Any = {"access_key_id": "anyone", "secret_access_key": "none"} if unsigned else {}
    store = S3Store(parts.netloc, client_options={"timeout": timedelta(seconds=TIMEOUT_S)}, **anyone)
    name, path = parts.geturl(), parts.path.lstrip("/")
    url, renew_at, lock = "", float("-inf"), threading.Lock()

    def locate() -> str:
        nonlocal url, renew_at
        # One thread signs and the others wait: signing may call a metadata server for credentials.
        with lock:
            if time.monotonic() > renew_at:
                try:
                    url = obstore.sign(store, "GET", path, timedelta(seconds=_SIGNED_FOR_S))
                except obstore.exceptions.BaseError as error:
                    raise StorageUnavailable(f"{name}: no credentials to sign with: {error}") from error
                url = url.partition("?")[0] if unsigned else url
                renew_at = time.monotonic() + _SIGNED_FOR_S / 6  # temporary credentials may expire earlier
            return url

    return locate
