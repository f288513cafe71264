"""Shards in buckets: S3 by signed HTTPS requests of our own, Google Cloud Storage by obstore."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import obstore
import obstore.exceptions
from obstore.store import GCSStore, S3Store

from loader.errors import StaleIndexError, StorageUnavailable
from loader.storage.connections import TIMEOUT_S, Connections
from loader.storage.https import DEADLINE_S, HttpShard

_SIGNED_FOR_S: Final = 3600.0
_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def open_s3(parts: SplitResult, *, connections: Connections) -> HttpShard:
    """Open s3://bucket/key. Credentials, region and endpoint come from the environment (AWS_*).

    obstore signs the requests and we send them, because obstore would follow redirects to any host. An endpoint that
    the environment names may be private: the environment of a process is trusted with its network.

    Raises:
        ValueError: If the bucket's name is not valid.
    """
    _check_bucket(parts.netloc, r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", "S3 bucket names are letters, digits")
    locate = _SignedUrl(parts)
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
    _check_bucket(
        parts.netloc, r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", "GCS bucket names are lower-case letters, digits"
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
        found = self._call(lambda: obstore.head(store, path))
        self.num_bytes: int = found["size"]
        self._etag: str | None = found["e_tag"]

    def read_at(self, offset: int, size: int) -> bytes:
        size = min(size, self.num_bytes - offset)
        return bytes(self._call(lambda: self._get(offset, size))) if size > 0 else b""

    def close(self) -> None:
        """Do nothing: connections belong to the store."""

    def _get(self, offset: int, size: int) -> Any:
        options: Any = {"range": (offset, offset + size)} | ({"if_match": self._etag} if self._etag else {})
        answer = obstore.get(self._store, self._path, options=options)
        # Not every server respects the condition, so the version is compared as well.
        if (answer.meta["size"], answer.meta["e_tag"]) != (self.num_bytes, self._etag):
            raise self._replaced()
        return answer.bytes()

    def _replaced(self) -> StaleIndexError:
        return StaleIndexError(f"{self._name} was replaced while it was read. Index again.")

    def _call(self, request: Callable[[], Any]) -> Any:
        """Run a request, with obstore's errors as ours."""
        try:
            return request()
        except FileNotFoundError:
            raise
        except obstore.exceptions.PreconditionError as error:
            raise self._replaced() from error
        except (OSError, obstore.exceptions.BaseError) as error:
            raise StorageUnavailable(f"{self._name} could not be read: {error}") from error


class _SignedUrl:
    """The URL of an S3 object, signed again before the signature expires; unsigned with AWS_SKIP_SIGNATURE."""

    def __init__(self, parts: SplitResult) -> None:
        self._unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1")
        # obstore builds URLs only with credentials; for unsigned ones any will do.
        anyone: Any = {"access_key_id": "anyone", "secret_access_key": "none"} if self._unsigned else {}
        self._store = S3Store(parts.netloc, client_options={"timeout": timedelta(seconds=TIMEOUT_S)}, **anyone)
        self._name, self._path = parts.geturl(), parts.path.lstrip("/")
        self._url, self._renew_at = "", float("-inf")
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            if time.monotonic() > self._renew_at:
                try:
                    url = obstore.sign(self._store, "GET", self._path, timedelta(seconds=_SIGNED_FOR_S))
                except obstore.exceptions.BaseError as error:
                    raise StorageUnavailable(f"{self._name}: no credentials to sign with: {error}") from error
                self._url = url.partition("?")[0] if self._unsigned else url
                self._renew_at = time.monotonic() + _SIGNED_FOR_S / 6  # temporary credentials may expire earlier
            return self._url


def _check_bucket(name: str, pattern: str, rule: str) -> None:
    """Refuse an invalid bucket name before it becomes part of an address."""
    if not re.fullmatch(pattern, name):
        raise ValueError(f"{rule}, '.', '_' and '-'; got {name[:100]!r}")
