from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time

import pytest

from tests.faults.failpoints import EVENT, PLACES, Failpoints, parse, runtime_env


@pytest.fixture
def points():
    points = Failpoints()
    yield points
    points.set("")


def test_a_place_fails_at_the_passage_that_was_named(points):
    points.set("selection.append=enospc@3,loader.request=eio@0")
    for passage in range(1, 6):
        if passage == 3:
            with pytest.raises(OSError, match="No space left") as raised:
                sys.audit(EVENT, "selection.append")
            assert raised.value.errno == errno.ENOSPC
        else:
            sys.audit(EVENT, "selection.append")
        with pytest.raises(OSError, match="Input/output error"):
            sys.audit(EVENT, "loader.request")
        sys.audit(EVENT, "snapshot.rename")  # nobody chose it
    assert points.passed() == {"selection.append": 5, "loader.request": 5}


def test_a_place_that_has_fired_in_one_process_is_spared_in_the_next(points, tmp_path):
    points.set("selection.append=eio", fired=tmp_path / "fired")
    with pytest.raises(OSError, match="Input/output"):
        sys.audit(EVENT, "selection.append")
    points.set("selection.append=eio", fired=tmp_path / "fired")
    sys.audit(EVENT, "selection.append")
    assert (tmp_path / "fired").read_text() == "selection.append\n"


def test_of_many_processes_that_come_by_together_one_fires(points, tmp_path):
    points.set("selection.append=eio", fired=tmp_path / "fired")
    starts, start = os.pipe()
    children = []
    for _ in range(16):
        children.append(child := os.fork())
        if not child:
            os.close(start)
            os.read(starts, 1)  # until all are there
            try:
                sys.audit(EVENT, "selection.append")
            except OSError:
                os._exit(1)
            os._exit(0)
    os.close(start)
    assert sum(os.waitpid(child, 0)[1] != 0 for child in children) == 1
    os.close(starts)


def test_a_sleep_lasts_as_long_as_it_says(points):
    points.set("loader.reply=sleep:0.05")
    began = time.monotonic()
    sys.audit(EVENT, "loader.reply")
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(("action", "status"), [("kill", -9), ("segfault", -11), ("partial", -9)])
def test_actions_end_the_process_as_they_say(action, status, tmp_path):
    code = (
        "import sys; from tests.faults.failpoints import failpoints, EVENT\n"
        f"failpoints.set('snapshot.write={action}')\n"
        f"file = open({str(tmp_path / 'torn')!r}, 'wb')\n"
        "sys.audit(EVENT, 'snapshot.write', file, b'0123456789')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == status
    assert (tmp_path / "torn").read_bytes() == (b"01234" if action == "partial" else b"")


def test_a_hang_keeps_the_lock_of_the_interpreter():
    code = (
        "import sys, threading, time; from tests.faults.failpoints import failpoints, EVENT\n"
        "failpoints.set('loader.decoded=hang:0.4')\n"
        "moments = []\n"
        "def tick():\n"
        "    while len(moments) < 60: moments.append(time.monotonic()); time.sleep(0.01)\n"
        "thread = threading.Thread(target=tick); thread.start()\n"
        "time.sleep(0.05); sys.audit(EVENT, 'loader.decoded'); thread.join()\n"
        "print(max(b - a for a, b in zip(moments, moments[1:])))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) > 0.35


@pytest.mark.parametrize(
    "text", ["nowhere=kill", "selection.append=explode", "selection.append", "loader.reply=partial"]
)
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="a failpoint must be PLACE=ACTION"):
        parse(text)


def test_unset_they_cost_less_than_a_microsecond_and_ray_hears_of_nothing(monkeypatch):
    monkeypatch.delenv("TEMPERA_FAILPOINTS", raising=False)
    assert runtime_env() is None
    code = (
        'import timeit; print(min(timeit.repeat(\'audit("tempera.failpoint", "selection.append")\', '
        "'from sys import audit', number=100_000, repeat=5)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) / 100_000 < 1e-6


def test_every_place_is_in_the_product():
    from pathlib import Path

    import deploy

    root = Path(deploy.__file__).parents[1]
    text = io.StringIO()
    for package in ("loader", "scoring", "trainer"):
        for path in (root / package).rglob("*.py"):
            text.write(path.read_text())
    assert [place for place in PLACES if f'audit(FAILPOINT, "{place}"' not in text.getvalue()] == []
