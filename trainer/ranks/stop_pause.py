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


class Agreement:
    """One answer of all ranks.

    Args:
        context: the ranks.
        device: where their collectives run.
        stop: called on this rank; True ends the run.
        pause: called on this rank; the run pauses while any rank returns True. None never pauses.
    """

    def __init__(
        self, context: Context, device: torch.device, *, stop: Callable[[], bool], pause: Callable[[], bool] | None
    ) -> None:
        self._context, self._device, self._stop, self._pause = context, device, stop, pause

    def stops(self, paused: Callable[[], AbstractContextManager[None]]) -> bool:
        """Pause while any rank asks for it, then return whether to stop. All ranks call this after the same step.

        Args:
            paused: entered for as long as the run pauses.
        """
        if self._stops():
            return True
        if not self._pauses():
            return False
        with paused():
            while self._pauses():
                time.sleep(POLL_S)
                if self._stops():
                    return True
        return False

    def _stops(self) -> bool:
        return self._context.any(self._stop(), self._device)

    def _pauses(self) -> bool:
        return self._pause is not None and self._context.any(self._pause(), self._device)
