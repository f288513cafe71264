"""The view of `tempera watch` and `status`: a run's facts, from its HTTP API while it lives and from its files after.

Neither Ray nor torch is imported, so the view is there at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.api.client import RunClient, find_run_here
from deploy.console import table
from deploy.observe.run_log import log_entries, log_table
from deploy.runs.rundir import RunDir

BARS = " " + "".join(chr(block) for block in range(0x2581, 0x2589))
TREND_POINTS = 60
LOG_LINES = 8


@contextmanager
def facts_of(path: Path | None) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield a function that returns the run's facts, over one connection.

    Raises:
        RunError: there is no run.
    """
    run = find_run_here(path)
    if run is not None and not run.is_alive:
        yield lambda: _facts_of_files(run)
        return
    with RunClient.find(path) as client:
        dashboard = "" if run is None else getattr(run.endpoint(), "dashboard", "")
        yield lambda: {**_facts_of_api(client), "ray_dashboard": dashboard}


def _facts_of_api(client: RunClient) -> dict[str, Any]:
    state = client.state()
    lines = [line for line in client.metrics(points=TREND_POINTS) if "loss" in line]
    return {
        "run": state["run"]["run_dir"],
        "name": state["run"]["name"],
        "alive": not state["read_only"],
        "status": state["run"]["status"],
        "total_steps": state["progress"]["total_steps"],
        "progress": state["progress"],
        "metrics": lines[-1] if lines else {},
        "losses": [line["loss"] for line in lines],
        "selection": state["selection"],
        "control": state["control"],
        "latency": state["latency"],
        "loaders": state["fleet"]["members"],
        "log": client.log(limit=LOG_LINES, changes_only=True),
    }


def _facts_of_files(run: RunDir) -> dict[str, Any]:
    from deploy.api.line_index import LineIndex

    config, lines = json.loads(run.config.read_text()), LineIndex(run.metrics)
    last, total = lines.last_with_loss(), config["train"]["total_steps"]
    names = ("step", "images_per_s", "data_wait", "loss")
    return {
        "run": str(run.path),
        "name": config["name"],
        "alive": False,
        "status": "over",
        "total_steps": total,
        "progress": {"total_steps": total, "eta_s": None, **{name: last.get(name) for name in names}},
        "metrics": last,
        "losses": [row["loss"] for row in lines.choose(since=0, points=TREND_POINTS) if "loss" in row],
        # Restoring the selection from the log takes too long for a view.
        "selection": None,
        "control": None,
        "latency": None,
        "loaders": [],
        "log": log_entries(run, limit=LOG_LINES, changes_only=True) if run.log.is_file() else [],
        "ray_dashboard": "",
    }


def status_view(facts: dict[str, Any]) -> RenderableType:
    """Return the head of the view: progress, speed, the values in force, and when a change would take effect."""
    progress, selection = facts["progress"], facts["selection"]
    step = int(progress["step"] or 0)
    head = Table.grid(padding=(0, 2))
    state = f"[green]{facts['status']}[/]" if facts["alive"] else "[dim]not running[/]"
    head.add_row("run", f"{facts['name']}  ({facts['run']})  {state}")
    eta = ""
    if progress["eta_s"] is not None:
        hours, rest = divmod(round(progress["eta_s"]), 3600)
        left = f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
        eta = f"   {left} left"
    head.add_row("step", f"{step:,} of {facts['total_steps']:,}{eta}")
    head.add_row("", ProgressBar(total=facts["total_steps"], completed=step, width=50))
    if progress["loss"] is not None:
        head.add_row("loss", f"{progress['loss']:.4f}")
    if progress["images_per_s"] is not None:
        wait = "" if progress["data_wait"] is None else f"   data wait {progress['data_wait']:.1%}"
        head.add_row("images/s", f"{progress['images_per_s']:,.0f}{wait}")
    if selection:
        held = "  [yellow]held by hand[/]" if selection["manual"] else "  on schedule"
        size = "unknown" if selection["effective_size"] is None else f"{selection['effective_size']:.3f}"
        head.add_row("effective size", f"{size} of {selection['num_samples']:,} samples{held}")
        temperature = "none" if selection["temperature"] is None else f"{selection['temperature']:.4g}"
        head.add_row("temperature", f"{temperature}   policy {selection['policy']}")
        control, latency = facts["control"], facts["latency"]
        bound = f"at step {control['next_step']:,}, in at most {control['bound_steps']} steps"
        if control["bound_s"] is not None:
            bound += f" ({control['bound_s']:.1f} s)"
        if latency["count"]:
            bound += f"   {latency['count']} so far: p50 {latency['p50_s']:.2f} s, p99 {latency['p99_s']:.2f} s"
        head.add_row("a change lands", bound)
    if facts["ray_dashboard"]:
        head.add_row("ray", f"http://{facts['ray_dashboard']}")
    return head


def frame(facts: dict[str, Any]) -> RenderableType:
    """Return the whole view: the head, the trend of the loss, the loaders and the newest changes."""
    parts: list[RenderableType] = [Panel(status_view(facts), title="tempera", title_align="left")]
    if losses := facts["losses"]:
        # A sparkline: block characters, lowest to highest.
        low, high = min(losses), max(losses)
        scale = (len(BARS) - 2) / (high - low) if high > low else 0.0
        parts.append(Text("loss " + "".join(BARS[1 + int((loss - low) * scale)] for loss in losses)))
    if facts["loaders"]:
        columns = ("name", "pid", "node", "images", "images_per_s", "hit_rate", "restarts")
        rows = [tuple(loader.get(name) for name in columns) for loader in facts["loaders"]]
        parts.append(table("loaders", columns, rows))
    parts.append(log_table(facts["log"]))
    return Group(*parts)
