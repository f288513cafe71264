"""Answers that are kept for a moment, so that many who look cost the run no more than one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

KEPT_VIEWS = 256

Result = TypeVar("Result")


class Kept:
    """Answers that are kept for a moment, each made by one thread while others who want the same wait for it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: dict[Hashable, tuple[float, Any]] = {}
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._changes = 0

    def __call__(self, key: Hashable, age_s: float, make: Callable[[], Result]) -> Result:
        """The answer of that key, made again when it is older than that."""
        with self._lock:
            if len(self._making) >= KEPT_VIEWS:
                self._answers, self._making = {}, {}
            making = self._making.setdefault(key, threading.Lock())
        with making:
            made_s, answer = self._answers.get(key, (float("-inf"), None))
            if self._clock() - made_s < age_s:
                kept: Result = answer
                return kept
            changes, began_s = self._changes, self._clock()
            made = make()
            with self._lock:
                if changes == self._changes:  # what was made before a change is not kept after it
                    self._answers[key] = began_s, made
            return made

    def clear(self) -> None:
        """After a change everybody sees what is."""
        with self._lock:
            self._changes += 1
            self._answers = {}
