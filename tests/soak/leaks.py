"""What a fault run may leave behind: processes, Ray resources, descriptors, shared memory, memory that grows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from deploy.console import say
from deploy.launch.cluster import join
from deploy.runs.rundir import Endpoint, RunDir, RunError
from tests.soak.processes import SHARED, Processes, Usage
from tests.soak.record import Holdings, Record

GROWTH_LIMIT = 5 * 2**20
"""Bytes a minute that a process may grow by, fitted over the second half of its samples."""
LEAST_S = 240.0
"""A process younger than this still warms up; its growth says nothing."""
DESCRIPTOR_LIMIT = 64
"""Descriptors that a process may hold more at its end than after the first tenth of its samples."""
SETTLE_S = 600.0
"""Within this time after the last fault the run must hold what it held before the first."""
FLUCTUATING = ("memory", "object_store_memory")


def holdings(run: RunDir, processes: Processes) -> Holdings:
    """What the run holds now; another process joins its cluster to see, for a process has one token for life.

    Args:
        run: its directory.
        processes: of the run.
    """
    command = [sys.executable, "-m", "tests.soak.leaks", str(run.path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=SETTLE_S)
    if done.returncode:
        raise RunError(f"the run's cluster must answer; it does not: {done.stderr.strip()[-500:]}")
    resources = json.loads(done.stdout.splitlines()[-1])
    roles = list(processes.roles().values())
    return Holdings(resources=resources, processes={role: roles.count(role) for role in sorted(set(roles))})


def free_resources(run: RunDir) -> dict[str, float]:
    """Ray resources of a run's cluster that nobody has taken."""
    endpoint = run.endpoint()
    if endpoint is None:
        raise RunError(f"the run in {run.path} is not alive; see its driver.log.")
    join(endpoint)
    import ray  # it reads its authentication when it is imported

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    ray.shutdown()
    names = {name: re.sub(r"_[0-9a-f]{16,}$", "", name) for name in free if name not in FLUCTUATING}
    return {names[name]: round(free[name], 3) for name in sorted(names)}  # placement groups bear another id each


def settled(run: RunDir, processes: Processes, before: Holdings) -> Holdings:
    """What the run holds once it holds what it held before, or when that takes too long."""
    deadline = time.monotonic() + SETTLE_S
    last_seen: Holdings | None = None
    while (now := holdings(run, processes)) != before and time.monotonic() < deadline:
        if now != last_seen:
            say(f"  waiting until the run holds what it held before the faults: {differences(before, now)}")
        last_seen = now
        time.sleep(3.0)
    return now


def differences(before: Holdings, now: Holdings) -> str:
    """What one holds and the other does not, in words."""
    parts = [(before.resources, now.resources), (before.processes, now.processes)]
    return ", ".join(
        f"{name} {was.get(name, 0):g} -> {has.get(name, 0):g}"
        for was, has in parts
        for name in sorted({*was, *has})
        if was.get(name, 0) != has.get(name, 0)
    )


def look(processes: Processes, endpoint: Endpoint | None, record: Record) -> None:
    """Note what the run's processes hold at the moment."""
    driver = {} if endpoint is None else {endpoint.pid: "driver"}
    for pid, role in (processes.roles() | driver).items():
        usage = processes.usage(pid, role)
        if usage is not None:
            record.usage.append(usage)
    record.mapped |= processes.shared_files()


def left_in_shared_memory(record: Record) -> tuple[str, ...]:
    """Files that the run used and did not remove."""
    return tuple(sorted(name for name in record.mapped if Path(SHARED, name).exists()))


def leaks(record: Record) -> list[str]:
    """What the run left behind or let grow, one line each."""
    found = []
    if record.exit_status != 0:
        found.append(f"the run was asked to stop and ended with status {record.exit_status}")
    if record.strays:
        found.append(f"{record.strays} processes are left over")
    if record.shared_memory:
        found.append(f"shared memory is left over: {', '.join(record.shared_memory[:5])}")
    if record.before is not None and record.after is not None and record.before != record.after:
        found.append(f"the run holds other things than before the faults: {differences(record.before, record.after)}")
    for pid in {usage.pid for usage in record.usage}:
        found += _grown([usage for usage in record.usage if usage.pid == pid])
    return found


def slopes(record: Record) -> dict[str, float]:
    """Role -> MiB a minute by which its oldest process grew, where one lived long enough to tell."""
    found: dict[str, tuple[float, float]] = {}
    for pid in {usage.pid for usage in record.usage}:
        history = [usage for usage in record.usage if usage.pid == pid]
        lived = history[-1].time - history[0].time
        if lived >= LEAST_S and lived > found.get(history[0].role, (0.0, 0.0))[0]:
            found[history[0].role] = lived, _growth(history) / 2**20
    return {role: round(growth, 2) for role, (_, growth) in sorted(found.items())}


def _grown(history: list[Usage]) -> list[str]:
    """Whether one process let memory or descriptors grow."""
    first, last = history[len(history) // 10], history[-1]
    name = f"{last.role} {last.pid}"
    found = []
    if last.time - history[0].time >= LEAST_S and (growth := _growth(history)) > GROWTH_LIMIT:
        found.append(f"{name} grew by {growth / 2**20:.1f} MiB a minute")
    if last.descriptors - first.descriptors > DESCRIPTOR_LIMIT:
        found.append(f"{name} holds {last.descriptors - first.descriptors} more descriptors than at its start")
    return found


def _growth(history: list[Usage]) -> float:
    """Bytes a minute, fitted over the second half."""
    half = history[len(history) // 2 :]
    times = np.array([usage.time - half[0].time for usage in half])
    return 60.0 * float(np.polyfit(times, [float(usage.private_bytes) for usage in half], 1)[0])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(free_resources(RunDir(Path(sys.argv[1])))) + "\n")
