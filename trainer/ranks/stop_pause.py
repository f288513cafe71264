"""Between two steps: whether to go on, to rest for a while, or to stop, agreed by all ranks.

A rank that stopped or rested alone would leave the others waiting in a collective until it times out, so the ranks ask
each other, and while they rest they go on asking.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from trainer.ranks.context import Context

POLL_S = 0.1
"""Seconds between two looks while resting."""


class Agreement:
    """What the ranks have agreed on.

    Args:
        context: the ranks.
        device: where their collectives run.
        stop: asked on this rank; True ends the run.
        pause: asked on this rank; the run rests for as long as any rank says True. None never rests.
    """

    def __init__(
        self, context: Context, device: torch.device, *, stop: Callable[[], bool], pause: Callable[[], bool] | None
    ) -> None:
        self._context, self._device, self._stop, self._pause = context, device, stop, pause

    def stops(self, resting: Callable[[], AbstractContextManager[None]]) -> bool:
        """Rest while told to, then tell whether to stop. All ranks call this after the same step.

        Args:
            resting: entered for as long as the run rests.
        """
        if self._stops():
            return True
        if not self._pauses():
            return False
        with resting():
            while self._pauses():
                time.sleep(POLL_S)
                if self._stops():
                    return True
        return False

    def _stops(self) -> bool:
        return self._context.any(self._stop(), self._device)

    def _pauses(self) -> bool:
        return self._pause is not None and self._context.any(self._pause(), self._device)
