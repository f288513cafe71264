from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from loader import (
    BatchSpec,
    BatchStream,
    LoaderConfig,
    LoaderWorker,
    LocalLoaders,
    ShardIndex,
    StaleIndexError,
    StorageUnavailable,
    StreamConfig,
    StreamStalled,
    Transform,
    build_index,
)
from loader.shards.tar import read_ahead
from loader.storage.addresses import check_form, checked_addresses
from loader.storage.buckets import BucketShard
from loader.storage.connections import Connections
from loader.storage.https import HttpShard
from loader.storage.shard_files import open_shard

LOCAL = ("127.0.0.1",)
Fault = Callable[[BaseHTTPRequestHandler], bool]
"""Answers a request wrongly and returns True, or returns False to let it pass."""


class RangeServer(ThreadingHTTPServer):
    """Serves a folder by byte ranges on loopback, and misbehaves as told."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), RangeHandler)
        self.root, self.faults, self.etag, self.requests, self.connections = root, [], '"1"', 0, 0
        self.base = f"http://127.0.0.1:{self.server_address[1]}"


class RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server: RangeServer = self.server
        server.requests += 1
        if server.faults and server.faults.pop(0)(self):
            return
        path = server.root / self.path.lstrip("/")
        if not path.is_file():
            self.reply(404, b"")
            return
        data = path.read_bytes()
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        body = data[first : last + 1]
        headers = {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(data)}", "ETag": server.etag}
        self.reply(206, body, headers)

    def reply(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(photo_index: ShardIndex):
    with RangeServer(photo_index.path.parent) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def answer(status: int, handler: RangeHandler) -> bool:
    handler.reply(status, b"no")
    return True


def short_body(handler: RangeHandler) -> bool:
    total = len((handler.server.root / handler.path.lstrip("/")).read_bytes())
    handler.reply(206, b"x", {"Content-Range": f"bytes 100-199/{total}", "ETag": handler.server.etag}, length=100)
    return hang_up(handler)


def wrong_range(handler: RangeHandler) -> bool:
    total = len((handler.server.root / handler.path.lstrip("/")).read_bytes())
    handler.reply(206, bytes(100), {"Content-Range": f"bytes 0-99/{total}", "ETag": handler.server.etag})
    return True


def hang_up(handler: RangeHandler) -> bool:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def remote_index(server: RangeServer, tmp_path: Path) -> ShardIndex:
    urls = [f"{server.base}/shard-{number:06d}.tar" for number in range(3)]
    return build_index(urls, tmp_path / "remote.parquet", allow_hosts=LOCAL)


def test_shards_over_http_are_indexed_like_files(server, photo_index, tmp_path):
    index = remote_index(server, tmp_path)
    assert index.fingerprint == photo_index.fingerprint
    assert index.remote
    assert not photo_index.remote
    assert (index.offset == photo_index.offset).all()
    # A walk reads ahead: not one request for every header.
    assert server.requests <= 3 * 3


def test_pixels_from_http_equal_those_from_files(server, photo_index, tmp_path):
    index = remote_index(server, tmp_path)
    spec = BatchSpec(sample_ids=np.arange(24), draws=np.arange(24), seed=0, transform=Transform(size=32))
    with (
        LoaderWorker(index.path, LoaderConfig(threads=2, allow_hosts=LOCAL)) as remote,
        LoaderWorker(photo_index.path, LoaderConfig()) as local,
    ):
        assert (remote.load(spec).images == local.load(spec).images).all()


def test_many_reads_are_in_flight(server, photo_index, tmp_path):
    """No shard is answered before all have been asked: a worker that reads one after the other would wait for ever."""
    index = remote_index(server, tmp_path)
    spec = BatchSpec(sample_ids=np.arange(24), draws=np.arange(24), seed=0, transform=Transform(size=8))
    asked: set[str] = set()
    one_more = threading.Condition()

    def meet(handler: RangeHandler) -> bool:
        with one_more:
            asked.add(handler.path)
            one_more.notify_all()
            one_more.wait_for(lambda: len(asked) == len(index.shard_urls), 60)
        return False

    with LoaderWorker(index.path, LoaderConfig(allow_hosts=LOCAL)) as worker:
        worker.load(spec)
        server.faults = [meet] * 100
        worker.load(spec)
    assert len(asked) == 3


@pytest.mark.parametrize("fault", [partial(answer, 503), partial(answer, 429), short_body, wrong_range, hang_up])
def test_passing_faults_are_retried_and_give_the_same_bytes(server, photo_index, fault):
    url = f"{server.base}/shard-000000.tar"
    expected = Path(photo_index.shard_urls[0]).read_bytes()[100:200]
    with closing(HttpShard(url, connections=Connections(allow_hosts=LOCAL), deadline_s=10)) as shard:
        server.faults = [fault, fault]
        assert shard.read_at(100, 100) == expected
        assert server.faults == []


def test_a_lasting_fault_is_a_typed_error_within_the_deadline(server):
    with closing(
        HttpShard(f"{server.base}/shard-000000.tar", connections=Connections(allow_hosts=LOCAL), deadline_s=1)
    ) as shard:
        server.faults = [partial(answer, 503)] * 1000
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match=r"did not deliver within 1 s.*503"):
            shard.read_at(0, 10)
        assert time.monotonic() - started < 15


def test_a_trickle_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr("loader.storage.https.TIMEOUT_S", 0.5)

    def trickle(handler: RangeHandler) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-9999/{size}")
        handler.send_header("ETag", '"1"')
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        while not hung_up.wait(0.1):
            try:
                handler.wfile.write(b"x")
                handler.wfile.flush()
            except OSError:
                hung_up.set()
        return True

    hung_up = threading.Event()
    with closing(HttpShard(f"{server.base}/shard-000000.tar", connections=Connections(allow_hosts=LOCAL))) as shard:
        size = shard.num_bytes
        server.faults = [trickle]
        assert len(shard.read_at(0, 10_000)) == 10_000, "the second try; the first would take 1,000 s"
        assert hung_up.wait(60)


def test_a_changed_etag_is_a_stale_index(server):
    with closing(HttpShard(f"{server.base}/shard-000000.tar", connections=Connections(allow_hosts=LOCAL))) as shard:
        server.etag = '"2"'
        with pytest.raises(StaleIndexError, match="was replaced while it was read"):
            shard.read_at(0, 10)


def test_connections_are_kept_for_many_reads_and_shared_by_shards(server):
    with Connections(allow_hosts=LOCAL) as connections:
        shards = [HttpShard(f"{server.base}/shard-{n:06d}.tar", connections=connections) for n in range(3)]
        for offset in range(20):
            shards[offset % 3].read_at(offset * 100, 100)
        assert server.connections == 1


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_at_once(server, monkeypatch):
    monkeypatch.setattr("loader.storage.https._FIRST_PAUSE_S", 100.0)
    with closing(HttpShard(f"{server.base}/shard-000000.tar", connections=Connections(allow_hosts=LOCAL))) as shard:
        expected = shard.read_at(0, 10)
        server.faults = [hang_up]
        assert shard.read_at(0, 10) == expected
        assert server.connections == 2


def test_a_name_that_resolves_to_a_private_address_later_is_not_connected_to(server, monkeypatch):
    """The address that was checked is the one that is connected to: rebinding the name in between changes nothing."""
    port, asked = server.server_address[1], []

    def rebinding(host: str, port: int, **options: object) -> list[object]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) > 1 else "93.184.216.34"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    dialled: list[tuple[str, int]] = []

    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("loader.storage.addresses.socket.getaddrinfo", rebinding)
    monkeypatch.setattr("loader.storage.connections.socket.create_connection", dial)
    with pytest.raises(ValueError, match="not a public address"):
        HttpShard(f"https://rebound.example:{port}/shard-000000.tar", connections=Connections(), deadline_s=5)
    assert dialled == [("93.184.216.34", port)]
    assert server.requests == 0


def test_missing_remote_shards_and_servers_without_ranges_are_errors(server):
    with pytest.raises(FileNotFoundError):
        open_shard(f"{server.base}/none.tar", connections=Connections(allow_hosts=LOCAL))
    server.faults = [partial(answer, 200)]
    with pytest.raises(StorageUnavailable, match="must serve byte ranges"):
        open_shard(f"{server.base}/shard-000000.tar", connections=Connections(allow_hosts=LOCAL))


def redirect(target: str, handler: RangeHandler) -> bool:
    handler.reply(302, b"", {"Location": target})
    return True


def test_redirects_are_followed_and_checked_like_the_first_address(server):
    url = f"{server.base}/shard-000000.tar"
    with closing(HttpShard(url, connections=Connections(allow_hosts=LOCAL))) as shard:
        expected = shard.read_at(0, 50)
        server.faults = [partial(redirect, "/shard-000000.tar?signed=1")]
        server.faults.append(lambda h: setattr(h, "path", h.path.split("?")[0]) or False)
        assert shard.read_at(0, 50) == expected
        for target in ("https://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://10.0.0.1/x"):
            server.faults = [partial(redirect, target)]
            with pytest.raises(ValueError, match=r"not a public address|must be file|redirects must go to https"):
                shard.read_at(0, 50)
        server.faults = [partial(redirect, "/shard-000000.tar")] * 20
        with pytest.raises(StorageUnavailable, match="redirects more than 5 times"):
            shard.read_at(0, 50)


def check_url(url):
    """What is asked of a URL before anything is opened."""
    parts = check_form(url)
    if parts.scheme in ("http", "https"):
        checked_addresses(parts, allow_hosts=())


@pytest.mark.parametrize("url", ["/data/a.tar", "a{b}.tar", "file:///data/a.tar", "s3://bucket/a.tar", "gs://b/a.tar"])
def test_good_urls_pass(url):
    check_url(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:curl x", "pipes and brace patterns"),
        (" PIPE:rm -rf /", "pipes and brace patterns"),
        ("https://x/shard-{000000..999999}.tar", "pipes and brace patterns"),
        ("s3://b/{a,b}{a,b}.tar", "pipes and brace patterns"),
        ("a\0.tar", "pipes and brace patterns"),
        ("http://93.184.216.34/a.tar", "must be file, https, s3, gs"),
        ("ftp://x/a.tar", "must be file, https, s3, gs"),
        ("gopher://x/a.tar", "must be file, https, s3, gs"),
        ("https://127.0.0.1/a.tar", "not a public address"),
        ("https://[::1]/a.tar", "not a public address"),
        ("https://10.1.2.3/a.tar", "not a public address"),
        ("https://192.168.0.1/a.tar", "not a public address"),
        ("https://169.254.169.254/latest/meta-data", "not a public address"),
        ("https://2130706433/a.tar", "not a public address"),
        ("https://[fd00::1]/a.tar", "not a public address"),
        ("https://[::ffff:10.0.0.1]/a.tar", "not a public address"),
        ("https://[64:ff9b::a00:1]/a.tar", "not a public address"),
        ("https://[2002:a00:1::]/a.tar", "not a public address"),
        ("https://224.0.0.1/a.tar", "not a public address"),
    ],
)
def test_dangerous_urls_are_refused(url, message):
    with pytest.raises(ValueError, match=message):
        check_url(url)


def test_buckets_are_read_by_range(tmp_path, photo_index):
    import obstore

    data = Path(photo_index.shard_urls[0]).read_bytes()
    store = obstore.store.MemoryStore()
    obstore.put(store, "a/b.tar", data)
    shard = BucketShard(store, "a/b.tar", name="gs://bucket/a/b.tar")
    assert shard.num_bytes == len(data)
    assert shard.read_at(100, 1000) == data[100:1100]
    assert shard.read_at(len(data) - 10, 1000) == data[-10:]
    assert shard.read_at(len(data), 10) == b""
    with pytest.raises(FileNotFoundError):
        BucketShard(store, "none.tar", name="s3://bucket/none.tar")
    obstore.put(store, "a/b.tar", data)
    with pytest.raises(StaleIndexError, match=r"gs://bucket/a/b\.tar was replaced"):
        shard.read_at(100, 1000)


def test_a_stall_names_the_shard_that_a_loader_waits_for(server, photo_index, tmp_path, random_windows):
    index = remote_index(server, tmp_path)
    config = StreamConfig(
        seed=0, global_batch=24, total_steps=1, window_steps=1, transform=Transform(size=8), stall_timeout_s=1.0
    )

    freed = threading.Event()

    def hang(handler: RangeHandler) -> bool:
        freed.wait(60)
        return False

    pool = LocalLoaders([LoaderWorker(index.path, LoaderConfig(allow_hosts=LOCAL, reads_in_flight=1))])
    server.faults = [hang] * 100
    with pytest.raises(StreamStalled, match=r"local-0 \(which waits for http://127.*/shard-00000\d\.tar for \d+ s\)"):
        next(iter(BatchStream(random_windows(24, config), pool, config)))
    server.faults = []
    freed.set()
    pool.close()


def test_reading_ahead_gives_the_same_bytes_in_fewer_reads():
    data = np.random.default_rng(0).bytes(100_000)
    reads = []

    def read_at(offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return data[offset : offset + size]

    ahead = read_ahead(read_at, chunk_bytes=10_000)
    for offset in range(0, 99_000, 700):
        assert ahead(offset, 512) == data[offset : offset + 512]
    assert ahead(5, 50_000) == data[5:50_005]
    assert len(reads) < 14
