"""WindowStore: windows that were handed out: the last few in memory, all in the log, old ones drawn again.

While the log cannot be written, windows are handed out all the same. That is sound because nothing else is acknowledged
in the meantime, and because UnloggedWindows keeps later changes out of them: after a crash the same requests draw the
same windows again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from scoring.errors import LogUnavailable
from scoring.log.runlog import RunLog
from scoring.records import LogEntry, Window, WindowFacts

log = logging.getLogger(__name__)

RECENT_WINDOWS = 4
UNWRITTEN_LIMIT = 64
"""Windows handed out while the log cannot be written, after which requests fail too."""


class WindowStore:
    """The windows of a run that were drawn. Takes no lock: the selection's state lock is held."""

    def __init__(self, runlog: RunLog, *, redraw: Callable[[int], Window]) -> None:
        self._log, self._redraw = runlog, redraw
        self.recent: OrderedDict[int, Window] = OrderedDict()
        """The newest windows, by index."""
        self.unwritten: list[tuple[WindowFacts, Window, list[LogEntry]]] = []
        """Windows that the log has not taken yet, with the entries of their requests."""
        newest = runlog.last_facts()
        self.last: WindowFacts | None = newest[0] if newest else None
        """Facts of the newest window."""

    @property
    def next_window(self) -> int:
        """The first window that is not drawn yet."""
        return 0 if self.last is None else self.last.index + 1

    def load(self, index: int) -> Window:
        """Return a window of the log, drawn again if its draws are not kept."""
        return self._log.window(index) or self._redraw(index)

    def add(self, facts: WindowFacts, window: Window, entries: list[LogEntry], *, scores_through: int) -> None:
        """Commit the next window and those that could not be written before it; if the disk is full, only note it.

        Args:
            facts: facts of the window.
            window: the window.
            entries: log entries that came with its request.
            scores_through: log sequence of the last score report that the table has.

        Raises:
            LogUnavailable: if the log could not be written for very long; the window was not added.
        """
        # With the windows before it in one transaction: the log never has a window without its predecessors.
        self.unwritten.append((facts, window, entries))
        try:
            self.flush()
        except LogUnavailable:
            if len(self.unwritten) > UNWRITTEN_LIMIT:
                self.unwritten.pop()
                raise
            self._log.unlogged.add(facts.index, scores_through=scores_through)
            log.warning("window %d is handed out unwritten; no change is accepted until the log is", facts.index)
        self.last = facts
        self.recent[facts.index] = window
        # Unwritten windows are nowhere else, so they come on top of the limit.
        while len(self.recent) > RECENT_WINDOWS + len(self.unwritten):
            self.recent.popitem(last=False)

    def flush(self) -> None:
        """Write the windows that are not in the log, all or none.

        Raises:
            LogUnavailable: if the disk does not take them; they are kept, and tried again with the next window.
        """
        if self.unwritten:
            self._log.append_windows(self.unwritten)
            self.unwritten = []
