"""What a fault run can do to a run. Each fault says what it did, and fails loudly when it could not be injected."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from deploy.api.client import ChangedSince, Refused, RunClient
from deploy.runs.rundir import RunDir
from tests.soak.processes import Processes
from tests.soak.storage import MISBEHAVIOURS, ShardServer

FREEZE_S = (2.0, 6.0)
MISBEHAVE_S = (1.0, 5.0)
LARGEST_FLEET = 4
AUTHOR = "soak"
IDLE_SOCKETS = 50


@dataclass
class Target:
    """The run under attack."""

    run: RunDir
    processes: Processes
    storage: ShardServer
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    """Replies to controls, for the checker."""

    def later(self, seconds: float, undo: Callable[[], object]) -> None:
        """End a fault after some time."""
        timer = threading.Timer(seconds, undo)
        timer.daemon = True
        timer.start()

    def client(self) -> RunClient:
        """A client of the run's API."""
        return RunClient.attach(self.run)


class NotInjected(Exception):
    """The fault found nothing to hit; the next fault is tried."""


Fault = Callable[[Target, random.Random], str]


def _signalled(role: str, number: signal.Signals) -> Fault:
    """Send a signal to one process of a role."""

    def inject(target: Target, chance: random.Random) -> str:
        pid = _one(target, role, chance)
        os.kill(pid, number)
        return f"{number.name} to {role} {pid}"

    return inject


def _frozen(role: str) -> Fault:
    """Stop one process of a role as if it held the GIL for good, and let it go on after some seconds."""

    def inject(target: Target, chance: random.Random) -> str:
        pid, seconds = _one(target, role, chance), chance.uniform(*FREEZE_S)
        os.kill(pid, signal.SIGSTOP)
        target.later(seconds, lambda: _continue(pid))
        return f"{role} {pid} frozen for {seconds:.1f} s"

    return inject


def _misbehaving(kind: str) -> Fault:
    """Let the storage misbehave for some seconds."""

    def inject(target: Target, chance: random.Random) -> str:
        seconds = chance.uniform(*MISBEHAVE_S)
        target.storage.misbehaviour = kind
        target.later(seconds, lambda: setattr(target.storage, "misbehaviour", ""))
        return f"storage: {kind} for {seconds:.1f} s"

    return inject


def _steer(target: Target, chance: random.Random) -> str:
    """A live change of the effective size; every third time the value is released."""
    with target.client() as client:
        if chance.random() < 1 / 3:
            reply, kind, value = client.control("release", None, author=AUTHOR), "release", None
        else:
            value = round(chance.uniform(0.1, 0.6), 3)
            reply, kind = client.control("effective_size", value, author=AUTHOR), "effective_size"
    target.acknowledged.append({"kind": kind, "value": value, "version": reply["version"], "window": reply["window"]})
    return f"{kind} {value} from window {reply['window']}"


def _scale(target: Target, chance: random.Random) -> str:
    wanted = chance.randint(1, LARGEST_FLEET)
    with target.client() as client:
        client.scale(wanted, author=AUTHOR, reason="fault run")
    return f"scaled to {wanted} loaders"


def _stale_control(target: Target, chance: random.Random) -> str:
    """A control with an old version must be refused, and change nothing."""
    with target.client() as client:
        try:
            client.control("effective_size", 0.33, author=AUTHOR, expected_version=10**6)
        except ChangedSince as refused:
            return f"stale control refused: version is {refused.version}"
    raise AssertionError("a control with a version that never was must be refused; it was taken")


def _wrong_values(target: Target, chance: random.Random) -> str:
    """Values out of range must be refused."""
    wrong = (("effective_size", 0.9), ("effective_size", -1.0), ("temperature", 0.0), ("policy", "none"))
    with target.client() as client:
        for kind, value in wrong:
            try:
                client.control(kind, value, author=AUTHOR)
            except Refused:
                continue
            raise AssertionError(f"a {kind} of {value} must be refused; it was taken")
    return "four values out of range refused"


def _idle_sockets(target: Target, chance: random.Random) -> str:
    """Connections that say nothing, held for some seconds."""
    with target.client() as client:
        address = urlsplit(client.url)
    place = address.hostname or "", address.port or 0
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE_SOCKETS):
            stack.enter_context(socket.create_connection(place, timeout=5))
        target.later(chance.uniform(*MISBEHAVE_S), stack.pop_all().close)
    return f"{IDLE_SOCKETS} idle sockets at the API"


def _one(target: Target, role: str, chance: random.Random) -> int:
    found = sorted(target.processes.of(role))
    if not found:
        raise NotInjected(f"no {role} process is alive")
    return chance.choice(found)


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


FAULTS: dict[str, Fault] = {
    "loader_kill": _signalled("loader", signal.SIGKILL),
    "loader_segfault": _signalled("loader", signal.SIGSEGV),
    "loader_freeze": _frozen("loader"),
    "fleet_kill": _signalled("fleet", signal.SIGKILL),
    "selection_kill": _signalled("selection", signal.SIGKILL),
    "selection_freeze": _frozen("selection"),
    "trainer_kill": _signalled("trainer", signal.SIGKILL),
    "trainer_freeze": _frozen("trainer"),
    **{f"storage_{kind}": _misbehaving(kind) for kind in MISBEHAVIOURS},
    "steer": _steer,
    "scale": _scale,
    "stale_control": _stale_control,
    "wrong_values": _wrong_values,
    "idle_sockets": _idle_sockets,
}
