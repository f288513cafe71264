"""The terminal: answers on standard output, progress and messages on standard error.

A command returns an `Answer`: the same facts as a JSON object for scripts and as a rich view for people. `cli.py`
prints one of the two. Bars and spinners go to standard error, and only to a terminal: a pipe, a log and --json get
none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

OUT = Console()
ERR = Console(stderr=True)

FOR_SCRIPT: ContextVar[bool] = ContextVar("for_script", default=False)
"""Whether --json was given: bars and spinners are then off."""

Advance = Callable[[int, int], None]
"""Called with (done, total) during a long step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The result of one command, for scripts and for people."""

    data: dict[str, Any]
    """JSON-able facts, printed as they are with --json."""
    view: RenderableType
    """The view for people: a line, a table or a panel."""
    ok: bool = True
    """False when the command ran and found a failure; the exit status is then 1."""
    verbatim: bool = False
    """The view is text for a file: not wrapped to the terminal, and not read as markup."""

    def show(self, *, as_json: bool) -> None:
        if as_json:
            OUT.file.write(json.dumps(self.data) + "\n")
        elif self.verbatim:
            OUT.file.write(f"{self.view}")
        else:
            OUT.print(self.view)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a rich table; numbers are right-aligned, None is shown as a dash."""
    result = Table(title=title or None, title_justify="left", header_style="bold")
    for position, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[position], int | float) or row[position] is None for row in rows)
        result.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(
            *("-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in row)
        )
    return result


def bars(*facts: ProgressColumn) -> Progress:
    """Return progress bars on standard error with description, done of total, the given columns, and the time left."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        *facts,
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    return Progress(*columns, console=ERR, disable=not ERR.is_terminal or FOR_SCRIPT.get())


@contextmanager
def progress_bar(description: str) -> Iterator[Advance]:
    """Show a progress bar on standard error for one long step, and yield the function that moves it."""
    with bars() as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def working(description: str) -> Iterator[None]:
    """Show a spinner on standard error for a step of unknown length. No bar may be shown at the same time."""
    with ERR.status(description) if ERR.is_terminal and not FOR_SCRIPT.get() else nullcontext():
        yield


def say(message: str) -> None:
    """Print one line on standard error, where it does not mix with an answer or --json."""
    ERR.print(message, highlight=False)
