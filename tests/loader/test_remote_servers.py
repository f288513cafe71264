"""Shards behind real servers on loopback: an S3-compatible one (moto) and nginx with TLS, started here."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from loader import ShardIndex, StaleIndexError, StorageUnavailable, build_index
from loader.storage import buckets
from loader.storage.connections import Connections
from loader.storage.https import HttpShard
from loader.storage.shard_files import open_shard
from tests.loader.servers import free_port, make_certificate, pixels, served
from tests.programs import needs, program

pytest.importorskip("moto", reason="the S3-compatible server is moto's")
NGINX = program("nginx")
needs_nginx = needs("nginx")
LOCAL = ("127.0.0.1",)
BUCKET = "tempera"


@dataclass
class S3:
    """A bucket on a running S3-compatible server."""

    endpoint: str
    client: object

    def put(self, key: str, data: bytes, *, acl: str = "private") -> str:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data, ACL=acl)
        return f"s3://{BUCKET}/{key}"


@pytest.fixture(scope="module")
def s3_server(photo_index: ShardIndex) -> Iterator[S3]:
    import boto3

    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with served(command, port):
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="tester",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        s3 = S3(endpoint, client)
        for shard in photo_index.shard_urls:
            s3.put(f"data/{Path(shard).name}", Path(shard).read_bytes())
        yield s3


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, and the environment that leads to it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return s3_server


def s3_urls(index: ShardIndex) -> list[str]:
    return [f"s3://{BUCKET}/data/{Path(shard).name}" for shard in index.shard_urls]


def test_shards_in_a_bucket_are_indexed_and_decoded_like_files(s3, photo_index, tmp_path):
    index = build_index(s3_urls(photo_index), tmp_path / "s3.parquet")
    assert index.fingerprint == photo_index.fingerprint
    index.verify(full=True)
    assert (pixels(index) == pixels(photo_index)).all()


def test_a_disk_cache_serves_the_second_pass_without_the_bucket(s3, photo_index, tmp_path, monkeypatch):
    index = build_index(s3_urls(photo_index), tmp_path / "s3.parquet")
    cache = {"disk_cache": str(tmp_path / "cache"), "disk_cache_bytes": 64 << 20}
    first = pixels(index, **cache)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert (pixels(index, **cache) == first).all()
    assert (first == pixels(photo_index)).all()


def test_public_objects_are_read_without_a_signature_and_private_ones_are_not(s3, monkeypatch):
    public, private = s3.put("open.tar", b"a" * 1000, acl="public-read"), s3.put("closed.tar", b"b" * 1000)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with Connections() as connections:
        assert open_shard(public, connections=connections).read_at(10, 20) == b"a" * 20
        with pytest.raises(StorageUnavailable, match="HTTP 403: check the credentials"):
            open_shard(private, connections=connections)


def test_an_object_that_is_replaced_while_it_is_open_is_a_stale_index(s3):
    url = s3.put("other/x.tar", b"a" * 5000)
    with Connections() as connections:
        shard = open_shard(url, connections=connections)
        assert shard.read_at(100, 10) == b"a" * 10
        s3.put("other/x.tar", b"b" * 5000)
        with pytest.raises(StaleIndexError, match="was replaced while it was read"):
            shard.read_at(100, 10)


def test_missing_objects_and_wrong_buckets_are_told_apart(s3):
    with Connections() as connections:
        with pytest.raises(FileNotFoundError, match=r"s3://tempera/none\.tar"):
            open_shard(f"s3://{BUCKET}/none.tar", connections=connections)
        with pytest.raises(ValueError, match="S3 bucket names"):
            open_shard("s3://no_bucket!/x.tar", connections=connections)
        with pytest.raises(ValueError, match="must not name a user; got one for 'host'"):
            open_shard("s3://user:secret@host/x.tar", connections=connections)


def test_an_endpoint_of_the_environment_opens_no_other_private_host(s3):
    with Connections() as connections:
        open_shard(s3.put("other/y.tar", b"y"), connections=connections)
        with pytest.raises(ValueError, match="must be file, https"):
            open_shard(f"{s3.endpoint}/{BUCKET}/other/y.tar", connections=connections)


@dataclass
class Nginx:
    """A running nginx, and the folder that it serves."""

    base: str
    root: Path
    certificate: Path
    folder: Path

    def requests(self) -> list[str]:
        """Ranges that were asked for so far."""
        return (self.folder / "access.log").read_text().splitlines()


@pytest.fixture(scope="module")
def nginx(photo_index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    assert NGINX, "tests that use it are marked needs_nginx"
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    root = shutil.copytree(photo_index.path.parent, folder / "root")
    certificate = make_certificate(folder)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"""daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{}}
        http {{
          {temporary}
          log_format ranges '$http_range'; access_log {folder}/access.log ranges;
          server {{
            listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {folder}/key.pem;
            location / {{ root {root}; }}
            location /moved/ {{ return 302 https://127.0.0.1:{port}/shard-000000.tar; }}
            location /evil/ {{ return 302 https://169.254.169.254/latest/meta-data; }}
            location /plain/ {{ alias {root}/; max_ranges 0; }}
            location /{BUCKET}/ {{ alias {root}/; }}
            location /{BUCKET}/moved/ {{ return 302 http://169.254.169.254/latest/meta-data; }}
          }}
        }}"""
    )
    with served([NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder)], port):
        yield Nginx(f"https://127.0.0.1:{port}", root, certificate, folder)


@pytest.fixture
def trusted(nginx: Nginx, monkeypatch: pytest.MonkeyPatch) -> Nginx:
    monkeypatch.setenv("SSL_CERT_FILE", str(nginx.certificate))
    return nginx


def https_index(nginx: Nginx, index: ShardIndex, out: Path) -> ShardIndex:
    return build_index([f"{nginx.base}/{Path(shard).name}" for shard in index.shard_urls], out, allow_hosts=LOCAL)


@needs_nginx
def test_shards_behind_nginx_and_tls_are_indexed_and_decoded_like_files(trusted, photo_index, tmp_path):
    index = https_index(trusted, photo_index, tmp_path / "https.parquet")
    assert index.fingerprint == photo_index.fingerprint
    assert (pixels(index, allow_hosts=LOCAL) == pixels(photo_index)).all()


@needs_nginx
def test_neighbours_of_a_shard_are_read_in_one_range(trusted, photo_index, tmp_path):
    index = https_index(trusted, photo_index, tmp_path / "https.parquet")
    before = len(trusted.requests())
    pixels(index, allow_hosts=LOCAL)
    asked = [line for line in trusted.requests()[before:] if line != "bytes=0-0"]
    assert len(asked) == len(photo_index.shard_urls)


@needs_nginx
def test_an_untrusted_certificate_is_refused(nginx, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(StorageUnavailable, match="certificate verify failed"):
        HttpShard(f"{nginx.base}/shard-000000.tar", connections=Connections(allow_hosts=LOCAL))


@needs_nginx
def test_redirects_of_nginx_are_followed_to_allowed_places_only(trusted):
    with Connections(allow_hosts=LOCAL) as connections:
        with closing(open_shard(f"{trusted.base}/moved/x.tar", connections=connections)) as shard:
            assert shard.read_at(0, 512) == (trusted.root / "shard-000000.tar").read_bytes()[:512]
        with pytest.raises(ValueError, match=r"169\.254\.169\.254.*not a public address"):
            open_shard(f"{trusted.base}/evil/x.tar", connections=connections)
        with pytest.raises(StorageUnavailable, match="must serve byte ranges"):
            open_shard(f"{trusted.base}/plain/shard-000000.tar", connections=connections)


@needs_nginx
def test_a_file_that_nginx_serves_anew_is_a_stale_index(trusted, photo_index, tmp_path):
    path = trusted.root / "new.tar"
    path.write_bytes(b"a" * 4000)
    with Connections(allow_hosts=LOCAL) as connections:
        shard = open_shard(f"{trusted.base}/new.tar", connections=connections)
        path.write_bytes(b"b" * 5000)
        with pytest.raises(StaleIndexError, match="was replaced while it was read"):
            shard.read_at(0, 10)


@pytest.fixture
def google(trusted: Nginx, monkeypatch: pytest.MonkeyPatch) -> Nginx:
    """nginx in the place of Google's storage: the same requests, without its accounts."""
    account = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account | {"gcs_base_url": trusted.base}))
    return trusted


@needs_nginx
def test_buckets_of_google_are_indexed_and_decoded_like_files(google, photo_index, tmp_path):
    urls = [f"gs://{BUCKET}/{Path(shard).name}" for shard in photo_index.shard_urls]
    index = build_index(urls, tmp_path / "gs.parquet")
    assert index.fingerprint == photo_index.fingerprint
    assert (pixels(index) == pixels(photo_index)).all()


@needs_nginx
def test_googles_missing_moved_and_misnamed_shards_are_errors(google, monkeypatch):
    with Connections() as connections:
        with pytest.raises(FileNotFoundError):
            open_shard(f"gs://{BUCKET}/none.tar", connections=connections)
        with pytest.raises(ValueError, match="GCS bucket names are lower-case letters"):
            open_shard("gs://Upper/x.tar", connections=connections)
        monkeypatch.setattr(buckets, "DEADLINE_S", 1.0)
        with pytest.raises(StorageUnavailable, match=r"gs://tempera/moved/x\.tar.*redirect"):
            open_shard(f"gs://{BUCKET}/moved/x.tar", connections=connections)
