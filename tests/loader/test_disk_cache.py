from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from loader.storage.disk_cache import DiskCache

LIMIT = 4 << 20


def image(number: int, size: int = 20_000) -> bytes:
    return np.random.default_rng(number).bytes(size)


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and path.name != "lock")


def test_what_was_put_is_there_for_every_cache_of_the_directory(tmp_path):
    first, second = DiskCache(tmp_path, max_bytes=LIMIT), DiskCache(tmp_path, max_bytes=LIMIT)
    first.put("a", image(1))
    assert second.get("a", zlib.crc32(image(1))) == image(1)
    assert second.get("b", 0) is None


def test_a_damaged_or_torn_file_is_removed_and_never_returned(tmp_path):
    cache = DiskCache(tmp_path, max_bytes=LIMIT)
    for damage in (lambda data: data[:-1], lambda data: b"", lambda data: data[:50] + b"\0" + data[51:]):
        cache.put("a", image(1))
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock")
        path.write_bytes(damage(path.read_bytes()))
        assert cache.get("a", zlib.crc32(image(1))) is None
        assert not path.exists()


def test_the_limit_holds_and_what_was_used_last_stays(tmp_path):
    cache = DiskCache(tmp_path, max_bytes=LIMIT)
    for number in range(400):
        cache.put(str(number), image(number))
        if number % 20 == 0:
            assert cache.get("0", zlib.crc32(image(0))) is not None
            assert stored_bytes(tmp_path) <= LIMIT
            time.sleep(0.002)
    kept = [number for number in range(400) if cache.get(str(number), zlib.crc32(image(number)))]
    assert 0.6 * LIMIT < stored_bytes(tmp_path) <= LIMIT
    assert 0 in kept
    assert 399 in kept
    assert 1 not in kept


def test_an_image_that_would_fill_the_cache_is_not_kept(tmp_path):
    cache = DiskCache(tmp_path, max_bytes=LIMIT)
    cache.put("huge", bytes(LIMIT // 2))
    assert cache.get("huge", zlib.crc32(bytes(LIMIT // 2))) is None


def test_a_smaller_limit_applies_when_the_directory_is_opened_again(tmp_path):
    cache = DiskCache(tmp_path, max_bytes=LIMIT)
    for number in range(150):
        cache.put(str(number), image(number))
    DiskCache(tmp_path, max_bytes=LIMIT // 4)
    assert stored_bytes(tmp_path) <= LIMIT // 4


def test_threads_and_a_second_cache_may_write_at_once(tmp_path):
    caches = [DiskCache(tmp_path, max_bytes=LIMIT) for _ in range(2)]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 300, 150).tolist():
            data = caches[seed % 2].get(str(number), zlib.crc32(image(number)))
            assert data is None or data == image(number)
            if data is None:
                caches[seed % 2].put(str(number), image(number))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert stored_bytes(tmp_path) <= LIMIT


def write_for_ever(root: Path) -> None:
    cache = DiskCache(root, max_bytes=LIMIT)
    for number in itertools.count():
        cache.put(str(number % 500), image(number % 500))


def test_killed_writers_leave_no_wrong_byte_and_the_limit_holds(tmp_path):
    root = tmp_path / "cache"
    for round_ in range(3):
        writers = [multiprocessing.get_context("fork").Process(target=write_for_ever, args=(root,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        while not stored_bytes(root):  # a busy machine may need a while to start them
            assert all(writer.is_alive() for writer in writers)
            time.sleep(0.01)
        time.sleep(0.3 + 0.1 * round_)
        for writer in writers:
            writer.kill()
            writer.join(60)
        cache = DiskCache(root, max_bytes=LIMIT)
        assert stored_bytes(root) <= LIMIT + 2 * 20_000  # and the temporary files of those that were killed
        found = [number for number in range(500) if cache.get(str(number), zlib.crc32(image(number))) is not None]
        assert found
        assert all(cache.get(str(number), zlib.crc32(image(number))) == image(number) for number in found)
    for path in root.rglob("t-*"):
        os.utime(path, (0, 0))
    DiskCache(root, max_bytes=LIMIT)
    assert not list(root.rglob("t-*"))


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a writable directory"):
        DiskCache(tmp_path / "file", max_bytes=LIMIT)
