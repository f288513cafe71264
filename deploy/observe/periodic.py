"""`periodic`: call a function every few seconds on a thread of its own while a run lasts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def periodic(
    act: Callable[[], object], *, every_s: float, name: str, trouble: str, join_s: float = 10.0
) -> Iterator[None]:
    """Call a function periodically until the block ends, and once more then, which may take `join_s`.

    Its exceptions are logged after the line `trouble`, each reason once in a row, and the calls continue. The thread
    is called `name`.
    """
    over = threading.Event()

    def loop() -> None:
        last, known = False, ""
        while not last:
            # True once the block has ended: act once more, so that what was written since the last call is not lost.
            last = over.wait(every_s)
            try:
                act()
                known = ""
            except Exception as error:  # an observer must not fail the run that it observes
                first_line, *_ = str(error).split("\n")
                reason = f"{type(error).__name__}: {first_line}"
                # A service that is down for an hour is one warning, not one every few seconds.
                log.log(logging.DEBUG if reason == known else logging.WARNING, "%s (%s)", trouble, reason)
                log.debug("where:", exc_info=True)
                known = reason

    # A daemon, so that a call that hangs past `join_s` cannot keep the process from ending.
    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(join_s)
