"""`tempera watch`: a live terminal view of a run, drawn from what it writes and, while it lives, from its actors."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.client import RunClient
from deploy.config import RunConfig, load_config
from deploy.console import OUT, table
from deploy.logs import log_entries, log_table
from deploy.rundir import RunDir

BARS = " " + "".join(chr(block) for block in range(0x2581, 0x2589))
TREND_POINTS = 60
LOG_LINES = 8


def watch(run: RunDir, *, every_s: float, once: bool) -> None:
    """Redraw until the run ends or the person presses Ctrl-C.

    Args:
        run: the run.
        every_s: seconds between two drawings.
        once: draw a single time, for scripts and tests.
    """
    config = load_config(run.config)
    with Live(_frame(run, config), console=OUT, auto_refresh=False, screen=not once and OUT.is_terminal) as live:
        while not once and run.endpoint():
            time.sleep(every_s)
            live.update(_frame(run, config), refresh=True)
    if not once:
        OUT.print(_frame(run, config))


def snapshot(run: RunDir) -> dict[str, Any]:
    """The facts behind the view: progress, last metrics, selection state and loaders, JSON-able."""
    config = load_config(run.config)
    lines = [line for line in run.metric_lines() if "loss" in line]
    endpoint = run.endpoint()
    facts: dict[str, Any] = {
        "run": str(run.path),
        "name": config.name,
        "alive": endpoint is not None,
        "total_steps": config.train.total_steps,
        "metrics": lines[-1] if lines else {},
        "selection": None,
        "loaders": [],
        "ray_dashboard": endpoint.dashboard if endpoint else "",
    }
    if endpoint:
        client = RunClient.attach(run)
        facts["selection"], facts["loaders"] = client.state(), client.loaders()
    return facts


def status_view(facts: dict[str, Any], config: RunConfig) -> RenderableType:
    """The head of the view: how far, how fast, what is in force."""
    metrics, selection = facts["metrics"], facts["selection"] or {}
    step = int(metrics.get("step", 0))
    head = Table.grid(padding=(0, 2))
    state = "[green]alive[/]" if facts["alive"] else "[dim]not running[/]"
    head.add_row("run", f"{facts['name']}  ({facts['run']})  {state}")
    head.add_row("step", f"{step:,} of {facts['total_steps']:,}")
    head.add_row("", ProgressBar(total=facts["total_steps"], completed=step, width=50))
    if metrics:
        speed, wait = metrics.get("images_per_s"), metrics.get("data_wait")
        head.add_row("loss", f"{metrics.get('loss', float('nan')):.4f}")
        head.add_row(
            "images/s", "-" if speed is None else f"{speed:,.0f}" + ("" if wait is None else f"   data wait {wait:.1%}")
        )
    if selection:
        held = "  [yellow]held by hand[/]" if selection["manual"] else "  on schedule"
        size = "unknown" if selection["effective_size"] is None else f"{selection['effective_size']:.3f}"
        head.add_row("effective size", f"{size} of {selection['num_samples']:,} samples{held}")
        temperature = "none" if selection["temperature"] is None else f"{selection['temperature']:.4g}"
        head.add_row("temperature", f"{temperature}   policy {selection['policy']}")
    head.add_row("curriculum", f"{config.curriculum.schedule} {config.curriculum.start} -> {config.curriculum.end}")
    if facts["ray_dashboard"]:
        head.add_row("ray", f"http://{facts['ray_dashboard']}")
    return head


def _frame(run: RunDir, config: RunConfig) -> RenderableType:
    facts = snapshot(run)
    losses = [line["loss"] for line in run.metric_lines(tail=TREND_POINTS) if "loss" in line]
    parts: list[RenderableType] = [Panel(status_view(facts, config), title="tempera", title_align="left")]
    if losses:
        parts.append(Text(f"loss {sparkline(losses)}"))
    if facts["loaders"]:
        columns = ("name", "pid", "node", "images", "restarts")
        rows = [tuple(loader.get(name) for name in columns) for loader in facts["loaders"]]
        parts.append(table("loaders", columns, rows))
    parts.append(log_table(log_entries(run, limit=LOG_LINES, changes_only=True)))
    return Group(*parts)


def sparkline(values: list[float]) -> str:
    """Values as a line of block characters, lowest to highest."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 2) / (high - low) if high > low else 0.0
    return "".join(BARS[1 + int((value - low) * scale)] for value in values)
