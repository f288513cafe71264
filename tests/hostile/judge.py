"""python -m tests.hostile.judge MANIFEST FIRST: gives hostile inputs to the product, one after the other, and says what
came of each: a line of JSON with the verdict, the message, seconds of processor time, and how far memory rose.

Runs in a process of its own, which may crash, hang or grow; whoever started it reads the lines and knows which input
was under way. Memory is what the kernel counts: the highest resident size since the input was begun.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.places import PLACES, Workplace

MOST_ADDRESSES = 4 << 30
"""Address space that inputs may add: an allocation that is never touched is one all the same."""


def main() -> None:
    manifest, first = Path(sys.argv[1]), int(sys.argv[2])
    cases: list[dict[str, Any]] = json.loads(manifest.read_text())
    work = Workplace(manifest.parent)
    for place, prepared in work.sound():
        outcome = judged(PLACES[place], work, prepared)
        if outcome[0] not in ("accepted", "substituted"):
            raise AssertionError(f"a sound {place} must be accepted; got {outcome}")
    gc.collect()
    gc.freeze()  # what the libraries made stays: collecting looks at what an input leaves only
    canary = Path(os.environ["TEMPERA_CANARY"])
    limit_addresses()
    begin = baseline()
    for number, case in enumerate(cases[first:], start=first):
        path = manifest.parent / case["file"]
        say({"begun": number})
        before = settled_memory()
        started = time.process_time()
        verdict, message = judged(PLACES[case["place"]], work, path)
        spent = time.process_time() - started
        grown = field("VmHWM") - before
        cost = {"seconds": round(spent, 3), "grown_mb": round(grown / 1024, 1), "canary": canary.exists()}
        say({"number": number, "verdict": verdict, "message": message[:600], **cost})
    work.close()
    gc.collect()
    say({"done": True, "before": begin, "after": baseline()})


def judged(place: Callable[[Workplace, Any], tuple[str, str]], work: Workplace, given: Any) -> tuple[str, str]:
    """The verdict on an input and its message: what was accepted, or the error."""
    try:
        return place(work, given)
    except Exception as error:
        return type(error).__name__, str(error)


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def settled_memory() -> int:
    """Resident kilobytes, after freed memory went back and the highest mark was set down to what there is."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return field("VmRSS")


def field(name: str) -> int:
    """A number of /proc/self/status, in kilobytes."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def limit_addresses() -> None:
    """Let nothing reserve what it does not need."""
    limit = field("VmSize") * 1024 + MOST_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def baseline() -> dict[str, Any]:
    """What must be as before when all is over: open descriptors, shared memory, children."""
    descriptors = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    open_files = sorted(os.readlink(path) for path in descriptors if os.path.lexists(path))
    return {
        "descriptors": [name for name in open_files if not name.startswith("/proc/")],
        "shared": sorted(os.listdir("/dev/shm")),
        "children": len(list(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())),
    }


if __name__ == "__main__":
    main()
