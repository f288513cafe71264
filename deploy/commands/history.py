"""`tempera replay`, `inspect`: a finished run drawn again from its log, and its table looked at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from deploy.api.client import RunClient, author_name, has_url_in_environment
from deploy.console import Answer, progress_bar, table, working
from deploy.runs.rundir import RunDir, find_run


def replay(path: Positional[Path]) -> Answer:
    """Draw every window of a run again from its log, and compare digests with what was handed out.

    Args:
        path: the run's directory; the run must not be alive.
    """
    from deploy.api.backend import open_finished_log
    from scoring import replay_run

    with (
        open_finished_log(RunDir(path).require()) as (log, config, distance),
        progress_bar("drawing windows again") as advance,
    ):
        report = replay_run(log, config, distance, progress=advance)
    verdict = "every window came out the same" if report.reproduced else f"{len(report.different)} windows differ"
    data = {"windows": report.windows, "draws": report.draws, "different": list(report.different)}
    view = "\n".join([f"{report.windows} windows, {report.draws:,} draws: {verdict}", *report.different])
    return Answer(data=data, view=view, ok=report.reproduced)


def inspect(*, run: Path | None = None, top: int = 10, export: Path | None = None) -> Answer:
    """Show who is drawn most and how concentrated the draw is; the run may be alive.

    Args:
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        top: how many of the most probable samples to list.
        export: Parquet file for the whole table.
    """
    found = None if run is None and has_url_in_environment() else find_run(run)
    alive = found is None or found.is_alive
    data = _inspect_alive(run, top, export) if alive else _inspect_finished(find_run(run), top, export)
    facts = ("sample_id", "probability", "times_drawn", "distance")
    rows = [tuple(sample[name] for name in facts) for sample in data["top"]]
    title = f"effective sample size {data['effective_sample_size']:.1f}, entropy {data['entropy']:.3f} nats"
    return Answer(data=data, view=table(title, facts, rows))


def _inspect_alive(run: Path | None, top: int, export: Path | None) -> dict[str, Any]:
    with working("asking the run"), RunClient.find(run) as client:
        data = client.get("summary", top=top)
        if export is None:
            return data
        written = client.export(author=author_name())
    shutil.copyfile(written["path"], export)
    return data | {"exported_rows": written["rows"]}


def _inspect_finished(run: RunDir, top: int, export: Path | None) -> dict[str, Any]:
    from deploy.api.backend import open_finished_log
    from scoring import Selection

    with working("reading the run's log"), open_finished_log(run) as (log, config, distance):
        selection = Selection(distance, config, runlog=log)
        data = selection.view("summary", top=top)
        return data if export is None else data | {"exported_rows": selection.view("export", path=export)["rows"]}
