"""Storage that fails in mid-run: nothing is quarantined, nothing changes, and the run goes on once it heals."""

from __future__ import annotations

import http.client
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.runs.config import DataConfig
from loader import BatchStream, ShardIndex, StaleIndexError, StorageUnavailable, TooManyBadSamplesError, build_index
from loader.storage.https import HttpShard
from tests.faults.consuming import CONFIG, consume, in_process, local_loaders, windows
from tests.soak.storage import MISBEHAVIOURS, ShardServer

HOST = ("127.0.0.1",)
OUTAGE_S, GOAL_S = 3.0, 2.0
SLACK_S = 1.0
"""The machine that tests run on is crowded."""


@pytest.fixture(scope="module")
def served(digits: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ShardServer, ShardIndex]]:
    """The digits behind a server that misbehaves on demand."""
    folder = tmp_path_factory.mktemp("served")
    for shard in ShardIndex.load(digits.index).shard_urls:
        shutil.copy(shard, folder)
    with ShardServer(folder) as server:
        urls = [f"{server.url}/{tar.name}" for tar in sorted(folder.glob("*.tar"))]
        yield server, build_index(urls, folder / "index.parquet", allow_hosts=HOST)


@pytest.fixture(scope="module")
def expected(served: tuple[ShardServer, ShardIndex]) -> str:
    return in_process(served[1], allow_hosts=HOST).digest


def through_an_outage(served, kind: str, outage_s: float):
    """What was consumed, and when storage had healed."""
    server, index = served
    healed: list[float] = []

    def heal() -> None:
        began = time.monotonic()
        while not server.done[kind] or time.monotonic() < began + outage_s:
            time.sleep(0.01)
        server.misbehaviour = ""
        healed.append(time.monotonic())

    def at_step(step: int) -> None:
        if step == 5:
            server.done.clear()
            server.misbehaviour = kind
            threading.Thread(target=heal, daemon=True).start()

    try:
        with local_loaders(str(index.path), 2, allow_hosts=HOST) as pool:
            stream = BatchStream(windows(len(index)), pool, CONFIG)
            return consume(stream, at_step), healed, stream.stats()
    finally:
        server.misbehaviour = ""


@pytest.mark.faults
@pytest.mark.parametrize("kind", MISBEHAVIOURS)
def test_the_run_goes_on_within_seconds_of_healing(kind, served, expected, note):
    seen, healed, stats = through_an_outage(served, kind, OUTAGE_S)
    assert served[0].done[kind] > 0, "the fault fired"
    recovery = seen.first_after(healed[0])
    assert seen.digest == expected
    assert stats["substituted"] == 0
    assert recovery < GOAL_S + SLACK_S
    note(f"storage: {kind} for {OUTAGE_S:g} s", recovery_s=[recovery], goal="2 s after heal")


def test_a_short_outage_changes_nothing(served, expected):
    seen, _, stats = through_an_outage(served, "error", 0.4)
    assert served[0].done["error"] > 0, "the fault fired"
    assert (seen.digest, stats["substituted"]) == (expected, 0)


@pytest.mark.faults
def test_without_retries_an_outage_ends_the_run(served, monkeypatch):
    monkeypatch.setattr(
        "loader.storage.https.HttpShard._retry", lambda self, offset, size: self._fetch(offset, size, 1.0)
    )
    with pytest.raises(Exception, match="HTTP 503"):
        through_an_outage(served, "error", 0.4)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["wrong_range", "short"])
def test_without_a_check_of_the_range_a_passing_fault_ends_the_run(kind, served, expected, monkeypatch):
    def unchecked(self, response, offset, size, timeout_s):
        self._etag = response.headers["ETag"]
        try:
            data = response.read()
        except http.client.IncompleteRead as error:
            data = error.partial
        return data.ljust(size, b"\0"), int(response.headers["Content-Range"].split("/")[1])

    monkeypatch.setattr("loader.storage.https.HttpShard._checked_body", unchecked)
    with pytest.raises((TooManyBadSamplesError, StaleIndexError), match=r"CRC-32 mismatch|no member of"):
        through_an_outage(served, kind, OUTAGE_S)


@pytest.mark.faults
def test_a_lasting_outage_is_a_typed_error(served, monkeypatch):
    server, index = served
    monkeypatch.setitem(HttpShard.__init__.__kwdefaults__, "deadline_s", 1.0)
    with local_loaders(str(index.path), 1, allow_hosts=HOST) as pool:
        stream = BatchStream(windows(len(index)), pool, CONFIG)

        def fail(step: int) -> None:
            server.misbehaviour = "error"

        try:
            with pytest.raises(StorageUnavailable, match=r"did not deliver within 1 s.*503"):
                consume(stream, fail)
        finally:
            server.misbehaviour = ""


def put(shard: Path, content: bytes) -> None:
    """Replace the shard at once, as object stores do: a file being written would be told by its length."""
    new = shard.with_suffix(".new")
    new.write_bytes(content)
    new.replace(shard)


def through_a_replacement(served) -> float:
    """Consume while the first shard gets other bytes of the same length; seconds from then to the error."""
    server, index = served
    shard = sorted(Path(server.folder).glob("*.tar"))[0]
    whole = shard.read_bytes()
    spoiled = bytearray(whole)
    spoiled[2048:] = np.random.default_rng(0).bytes(len(whole) - 2048)
    replaced: list[float] = []

    def replace_shard(step: int) -> None:
        if step == 3:
            put(shard, spoiled)
            replaced.append(time.monotonic())

    try:
        with local_loaders(str(index.path), 2, allow_hosts=HOST) as pool:
            consume(BatchStream(windows(len(index)), pool, CONFIG), replace_shard)
    except StaleIndexError as error:
        if "was replaced while it was read" in str(error):
            return time.monotonic() - replaced[0]
        raise
    finally:
        put(shard, whole)
    raise AssertionError("the fault went unseen")


def test_a_shard_that_is_replaced_in_mid_run_gives_no_wrong_pixel(served, note):
    note("shard replaced in mid-run (ETag)", seen=f"typed error after {through_a_replacement(served):.1f} s")


def test_without_the_etag_a_replaced_shard_is_not_told_from_a_damaged_one(served, monkeypatch):
    original = HttpShard._checked_body

    def unmarked(self, response, offset, size, timeout_s):
        del response.headers["ETag"]
        return original(self, response, offset, size, timeout_s)

    monkeypatch.setattr(HttpShard, "_checked_body", unmarked)
    with pytest.raises((TooManyBadSamplesError, StaleIndexError), match=r"CRC-32 mismatch|no member of"):
        through_a_replacement(served)
