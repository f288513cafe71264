"""Doing something every so often beside a run: what watches, exports and reports on threads of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def repeated(
    act: Callable[[], object], *, every_s: float, name: str, trouble: str, join_s: float = 10.0
) -> Iterator[None]:
    """Act on a thread every so often until the block ends, and once more then.

    Args:
        act: what to do; when it fails that is logged, once for each reason, and it is done again the next time.
        every_s: seconds between two times.
        name: the thread's.
        trouble: what to say in the log when it fails, one line.
        join_s: how long the last time may take.
    """
    over = threading.Event()

    def loop() -> None:
        last, known = False, ""
        while not last:
            last = over.wait(every_s)
            try:
                act()
                known = ""
            except Exception as error:  # whoever watches must not fail what it watches
                first_line, *_ = str(error).split("\n")
                reason = f"{type(error).__name__}: {first_line}"
                log.log(logging.DEBUG if reason == known else logging.WARNING, "%s (%s)", trouble, reason)
                log.debug("where:", exc_info=True)
                known = reason

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(join_s)
