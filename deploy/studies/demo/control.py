"""The changes that the demo makes to its own run while it trains, through the same client as the command line.

Each act is due at a share of the training. A thread waits until the trainer's windows reach it, performs it, and prints
its outcome.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One change to the live run."""

    due: float
    """Share of the training's windows that must have been drawn, in [0, 1]."""
    what: str
    do: Callable[[ControlScript], str]
    """Makes the change and returns its outcome."""


def _control(kind: str, value: float | None, reason: str) -> Callable[[ControlScript], str]:
    def do(script: ControlScript) -> str:
        reply = script.client.control(kind, value, author=AUTHOR, reason=reason)
        return f"in force from window {reply['window']} (step {reply['step']})"

    return do


def _scale_to(loaders: int) -> Callable[[ControlScript], str]:
    def do(script: ControlScript) -> str:
        reply = script.client.scale(loaders, author=AUTHOR, reason="the demo scales loaders live")
        return f"{reply['previous']} -> {reply['size']} loaders"

    return do


def _kill_one(script: ControlScript) -> str:
    victim = next(loader for loader in script.fleet.status()["loaders"] if loader["state"] == "ready")
    os.kill(victim["pid"], signal.SIGKILL)
    # The API kills nothing, so neither does it log this: the entry shows in the history why a loader was replaced.
    message = f"SIGKILL to {victim['name']} (pid {victim['pid']})"
    script.selection.record(Event(kind="kill", author=AUTHOR, message=message, value=victim["name"]))
    return f"killed {victim['name']} (pid {victim['pid']})"


ACTS = (
    Act(
        due=0.15,
        what=f"set effective-size {HELD_EFFECTIVE_SIZE}",
        do=_control("effective_size", HELD_EFFECTIVE_SIZE, "a person takes the knob"),
    ),
    Act(due=0.30, what="release", do=_control("release", None, "back to the schedule")),
    Act(due=0.40, what="scale 4", do=_scale_to(4)),
    Act(due=0.55, what="kill -9 one loader", do=_kill_one),
    Act(due=0.72, what="scale 1", do=_scale_to(1)),
)


class ControlScript:
    """Performs the acts beside a run, in a thread, for as long as its `with` block lasts.

    Leaving the block waits for the last act and reads the draw counts; a failed or missed act raises RuntimeError.
    """

    def __init__(self, client: RunClient, selection: SelectionPort, fleet: FleetClient, *, num_windows: int) -> None:
        # Beside the API: the selection takes log entries of our own, the fleet knows the loaders' process ids.
        self.client, self.selection, self.fleet = client, selection, fleet
        self._num_windows = num_windows
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._performed = 0
        self.times_drawn: NDArray[np.uint32] = np.zeros(0, np.uint32)
        """Number of draws of each sample, uint32[N], once the run is over."""
        # A daemon, so that a request that hangs cannot keep the demo from ending.
        self._thread = threading.Thread(target=self._perform, name="demo-control", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(JOIN_S)
        if kind is not None:  # the training's own error is the one to show
            return
        if self._failure is not None:
            raise RuntimeError(f"the demo's control script failed: {self._failure}") from self._failure
        if self._performed != len(ACTS):
            raise RuntimeError(f"the demo's control script performed {self._performed} of {len(ACTS)} acts")
        self.times_drawn = self.selection.times_drawn()

    def _perform(self) -> None:
        try:
            for act in ACTS:
                while self.client.state()["selection"]["next_window"] < act.due * self._num_windows:
                    if self._over.is_set():  # training ended before the act was due
                        return
                    time.sleep(POLL_S)
                outcome = act.do(self)
                self._performed += 1
                say(f"  [bold]{act.what}[/bold]: {outcome}")
        except BaseException as failure:  # raised again when the block ends
            self._failure = failure
