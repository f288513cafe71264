"""What the tests of observing share: a state as the API answers it, and a reader of TensorBoard's event files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def state(**changes: Any) -> dict[str, Any]:
    """The state of a run with two loaders, as GET /api/v1/state answers it; top-level parts can be changed."""
    members = [
        {"name": "loader-0", "state": "ready", "node": "a", "pid": 11, "images_per_s": 400.0, "hit_rate": 0.5,
         "restarts": 0, "images": 9000, "reason": ""},
        {"name": "loader-1", "state": "starting", "node": None, "pid": None, "images_per_s": None, "hit_rate": None,
         "restarts": 2, "images": None, "reason": "no answer for 10 s"},
    ]  # fmt: skip
    selection = {
        "policy": "prototypical", "temperature": 0.125, "effective_size": 0.35, "scheduled_effective_size": 0.25,
        "manual": True, "manual_kind": "effective_size", "control_version": 3, "version": 7, "next_window": 6,
        "next_step": 96, "num_samples": 1000, "scored": {"bss": 640},
        "times_drawn": {"quantiles": [0, 1, 2, 3, 9], "mean": 1.5, "never": 40},
    }  # fmt: skip
    return {
        "run": {"name": "tiny", "run_dir": "runs/tiny", "method": "mae", "started": 0.0, "status": "running"},
        "progress": {"step": 70, "total_steps": 480, "eta_s": 41.0, "images_per_s": 800.0, "data_wait": 0.03,
                     "loss": 0.5},
        "selection": selection,
        "fleet": {"desired": 2, "author": "ana", "reason": "", "members": members, "scalable": True},
        "control": {"version": 3, "next_window": 6, "next_step": 96, "bound_steps": 33, "bound_s": 3.3},
        "latency": {"count": 2, "p50_s": 1.5, "p99_s": 2.5, "last_s": 2.5},
        "paused": False,
        "pausing": False,
        "bad_samples": 4,
    } | changes  # fmt: skip


def events(folder: Path) -> list[Event]:
    """The events of every event file in a folder: length, its checksum, the event, its checksum, and again."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value."""
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    }
