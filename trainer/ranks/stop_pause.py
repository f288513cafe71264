"""Between two steps: whether to continue, pause or stop, agreed by all ranks.

A rank that stopped or paused alone would leave the others waiting in a collective until it times out, so the ranks
combine their answers, and while they pause they go on doing so.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from trainer.ranks.context import Context

POLL_S = 0.1
"""Seconds between two checks while the run pauses."""


def pause_or_stop(
    context: Context,
    device: torch.device,
    *,
    stop: Callable[[], bool],
    pause: Callable[[], bool] | None,
    paused: Callable[[], AbstractContextManager[None]],
) -> bool:
    """Pause while any rank asks for it, then return whether to stop. All ranks call this after the same step.

    `stop` and `pause` are called on this rank; True on any stops the run, a paused one as well, or pauses it. None on
    all ranks never pauses. `paused` is entered for as long as the run pauses; collectives run on `device`.
    """
    if context.any(stop(), device):
        return True
    if pause is None or not context.any(pause(), device):
        return False
    with paused():
        # Every rank makes the same collectives in the same order here: each leaves the loop by a shared answer only.
        while context.any(pause(), device):
            time.sleep(POLL_S)
            if context.any(stop(), device):
                return True
    return False
