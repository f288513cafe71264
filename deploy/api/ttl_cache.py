"""TtlCache: answers kept for a moment, so that any number of watchers cost the run what one of them does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

MOST_KEYS = 256

Result = TypeVar("Result")


class TtlCache:
    """Answers by key, each computed by one thread while others that want the same wait for it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: dict[Hashable, tuple[float, Any]] = {}
        self._computing: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._clears = 0

    def get(self, key: Hashable, ttl_s: float, compute: Callable[[], Result]) -> Result:
        """Return the answer of the key, computed anew when it is older than `ttl_s` seconds."""
        with self._lock:
            # Keys carry query parameters: a client that varies them must not fill the memory.
            if len(self._computing) >= MOST_KEYS:
                self._answers, self._computing = {}, {}
            computing = self._computing.setdefault(key, threading.Lock())
        # Other threads with the same key wait here, then find the answer.
        with computing:
            began_s, answer = self._answers.get(key, (float("-inf"), None))
            if self._clock() - began_s < ttl_s:
                kept: Result = answer
                return kept
            clears, began_s = self._clears, self._clock()
            computed = compute()
            with self._lock:
                if clears == self._clears:  # an answer that was begun before a change must not outlive it
                    self._answers[key] = began_s, computed
            return computed

    def clear(self) -> None:
        """Drop every answer: after a change the next one must show it."""
        with self._lock:
            self._clears += 1
            self._answers = {}
