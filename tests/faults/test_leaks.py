"""The leak check is checked: a run that leaves something behind is told from one that does not."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.soak.leaks import leaks, left_in_shared_memory, look, slopes
from tests.soak.processes import SHARED, Processes, Usage
from tests.soak.record import Holdings, Injection, Record
from tests.soak.verdict import standstills

MIB = 2**20
HELD = Holdings(resources={"CPU": 4.0}, processes={"loader": 2, "trainer": 1})


def history(role: str = "trainer", *, grows: float = 0.0, descriptors: int = 0, minutes: int = 10) -> list[Usage]:
    """A process that warms up for a while, and grows by so many bytes a minute for good."""
    return [
        Usage(
            time=60.0 * minute,
            pid=7,
            role=role,
            private_bytes=int(100 * MIB + min(minute, 3) * 50 * MIB + grows * minute),
            descriptors=40 + descriptors * minute // minutes,
        )
        for minute in range(minutes + 1)
    ]


def record(**changes) -> Record:
    return Record(**{"exit_status": 0, "before": HELD, "after": HELD, "usage": history(), **changes})


def test_a_clean_run_leaks_nothing():
    assert leaks(record()) == []
    assert slopes(record()) == {"trainer": pytest.approx(0.0, abs=0.1)}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"exit_status": 1}, "ended with status 1"),
        ({"exit_status": None}, "ended with status None"),
        ({"strays": 2}, "2 processes are left over"),
        ({"shared_memory": ("ring",)}, "shared memory is left over: ring"),
        ({"after": Holdings(resources={"CPU": 3.0}, processes=HELD.processes)}, "CPU 4 -> 3"),
        ({"after": Holdings(resources=HELD.resources, processes={"loader": 3})}, "loader 2 -> 3"),
        ({"usage": history(grows=20 * MIB)}, "trainer 7 grew by 20.0 MiB a minute"),
        ({"usage": history("driver", descriptors=200)}, "driver 7 holds 180 more descriptors"),
    ],
)
def test_each_leak_is_named(changes, found):
    (line,) = leaks(record(**changes))
    assert found in line


def test_what_a_process_of_the_run_has_mapped_is_seen_and_what_is_left_of_it():
    processes, seen = Processes(), Record()
    path = Path(SHARED, f"tempera-test-{os.getpid()}")
    path.write_bytes(bytes(mmap.PAGESIZE))
    code = (
        f"import mmap, time; file = open({str(path)!r}, 'r+b'); held = mmap.mmap(file.fileno(), 0); "
        "print('mapped', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env=processes.environment, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert processes.alive() == [child.pid]
        look(processes, None, seen)
        assert seen.mapped == {path.name}
        assert left_in_shared_memory(seen) == (path.name,)
    finally:
        child.kill()
        child.communicate()
        path.unlink()
    assert left_in_shared_memory(seen) == ()
    assert processes.alive() == []


def test_a_standstill_is_the_longest_wait_after_a_fault():
    now = time.time()
    injections = [
        Injection(time=now + 1.5, kind="kill", what=""),
        Injection(time=now + 8.0, kind="scale", what=""),
        Injection(time=now + 10.5, kind="steer", what=""),
    ]
    moments = [now, now + 1, now + 4, now + 5, now + 10, now + 10.2, now + 11, now + 12]
    assert standstills(injections, moments) == {
        "kill": {"p50_s": 5.0, "p95_s": 5.0},
        "scale": {"p50_s": 0.8, "p95_s": 0.8},  # the wait that it fell into was not of its making
        "steer": {"p50_s": 1.0, "p95_s": 1.0},
    }
