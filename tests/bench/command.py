"""Turns a benchmark's function into a command: options from its signature, a table for people, --json for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tyro
from rich.console import Console

from deploy.console import table


def run(bench: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Call a benchmark with the options of the command line, print its figures and return them."""
    words = [word for word in sys.argv[1:] if word != "--json"]
    figures = tyro.cli(bench, args=words)
    if len(words) < len(sys.argv) - 1:
        print(json.dumps(figures))
    else:
        Console().print(table(bench.__module__, ("figure", "value"), list(flattened(figures))))
    return figures


def flattened(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested figures as (dotted name, value)."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def say(*progress: Any) -> None:
    """Print where a benchmark is, on standard error."""
    print(*progress, file=sys.stderr)
