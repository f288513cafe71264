"""What the demo does to its own run while it trains, through the same client as the command line.

A list of acts, each due at a share of the training: `perform` waits until the trainer's windows reach it, does it,
and says so.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from deploy.api.client import RunClient
from deploy.console import say
from scoring import Event

if TYPE_CHECKING:
    from loader.fleet.actors import FleetClient
    from scoring import SelectionPort

AUTHOR = "demo"
HELD_EFFECTIVE_SIZE = 0.45
POLL_S = 0.2
JOIN_S = 30.0


@dataclass(frozen=True, slots=True)
class LiveActors:
    """The clients of the live run's actors, for what its API does not offer: process ids, entries of our own."""

    selection: SelectionPort
    fleet: FleetClient


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One change to the live run."""

    due: float
    """Share of the training's windows that must have been drawn, in [0, 1]."""
    what: str
    """One line for the person who watches."""
    do: Callable[[RunClient, LiveActors], str]
    """Does it; returns what came of it."""


def _hold(client: RunClient, live: LiveActors) -> str:
    reply = client.control("effective_size", HELD_EFFECTIVE_SIZE, author=AUTHOR, reason="a person takes the knob")
    return f"in force from window {reply['window']} (step {reply['step']})"


def _release(client: RunClient, live: LiveActors) -> str:
    reply = client.control("release", None, author=AUTHOR, reason="back to the schedule")
    return f"in force from window {reply['window']} (step {reply['step']})"


def _scale_to(loaders: int) -> Callable[[RunClient, LiveActors], str]:
    def do(client: RunClient, live: LiveActors) -> str:
        reply = client.scale(loaders, author=AUTHOR, reason="the demo scales loaders live")
        return f"{reply['previous']} -> {reply['size']} loaders"

    return do


def _kill_one(client: RunClient, live: LiveActors) -> str:
    victim = next(loader for loader in live.fleet.status()["loaders"] if loader["state"] == "ready")
    os.kill(victim["pid"], signal.SIGKILL)
    message = f"SIGKILL to {victim['name']} (pid {victim['pid']})"
    live.selection.record(Event(kind="kill", author=AUTHOR, message=message, value=victim["name"]))
    return f"killed {victim['name']} (pid {victim['pid']})"


ACTS = (
    Act(due=0.15, what=f"set effective-size {HELD_EFFECTIVE_SIZE}", do=_hold),
    Act(due=0.30, what="release", do=_release),
    Act(due=0.40, what="scale 4", do=_scale_to(4)),
    Act(due=0.55, what="kill -9 one loader", do=_kill_one),
    Act(due=0.72, what="scale 1", do=_scale_to(1)),
)


class ControlScript:
    """Performs the acts beside a run, in a thread of its own, for as long as its `with` block lasts.

    Leaving the block waits for the last act and reads what only the live run can tell; a failed or missed act raises
    RuntimeError.
    """

    def __init__(self, client: RunClient, live: LiveActors, *, num_windows: int) -> None:
        self._client, self._live, self._num_windows = client, live, num_windows
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self.performed: list[str] = []
        self.times_drawn: NDArray[np.uint32] = np.zeros(0, np.uint32)
        """How often each sample was drawn, uint32[N], once the run is over."""
        self._thread = threading.Thread(target=self._perform, name="demo-control", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(JOIN_S)
        if kind is not None:
            return
        if self._failure is not None:
            raise RuntimeError(f"the demo's control script failed: {self._failure}") from self._failure
        if len(self.performed) != len(ACTS):
            raise RuntimeError(f"the demo's control script performed {len(self.performed)} of {len(ACTS)} acts")
        self.times_drawn = self._live.selection.times_drawn()

    def _perform(self) -> None:
        try:
            for act in ACTS:
                if not self._wait_for(act.due):
                    return
                outcome = act.do(self._client, self._live)
                self.performed.append(act.what)
                say(f"  [bold]{act.what}[/bold]: {outcome}")
        except BaseException as failure:  # raised again when the block ends
            self._failure = failure

    def _wait_for(self, due: float) -> bool:
        """Wait until that share of the windows is drawn; False when training ended before."""
        while self._client.state()["selection"]["next_window"] < due * self._num_windows:
            if self._over.is_set():
                return False
            time.sleep(POLL_S)
        return True
