"""`tempera replay` and `inspect`: draw a finished run again from its log, and show the table of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from tyro.conf import Positional

from deploy.api.client import RunClient, author_name, find_run_here
from deploy.commands.combined import AnyRun
from deploy.console import Answer, progress_bar, table, working
from deploy.runs.rundir import RunDir


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
    verdict = "every window was drawn the same" if report.reproduced else f"{len(report.different)} windows differ"
    data = {"windows": report.windows, "draws": report.draws, "different": list(report.different)}
    view = "\n".join([f"{report.windows} windows, {report.draws:,} draws: {verdict}", *report.different])
    return Answer(data=data, view=view, ok=report.reproduced)


def inspect(*, run: AnyRun = None, top: int = 10, export: Path | None = None) -> Answer:
    """Show which samples are drawn most and how concentrated the draw is; the run may be alive.

    Args:
        top: number of samples to list, the most probable ones.
        export: write the whole table into this Parquet file.
    """
    found = find_run_here(run)
    if found is None or found.is_alive:
        with working("waiting for the run"), RunClient.find(run) as client:
            data = client.get("summary", top=top)
            written = None if export is None else client.post("export", author=author_name())
        if export is not None and written is not None:
            # The run writes into its own report folder, never to a path that a request names.
            shutil.copyfile(written["path"], export)
            data["exported_rows"] = written["rows"]
    else:
        from deploy.api.backend import open_finished_log
        from scoring import Selection

        with working("reading the run's log"), open_finished_log(found) as (log, config, distance):
            selection = Selection(distance, config, runlog=log)
            data = selection.view("summary", top=top)
            if export is not None:
                data["exported_rows"] = selection.view("export", path=str(export))["rows"]
    facts = ("sample_id", "probability", "times_drawn", "distance")
    rows = [tuple(sample[name] for name in facts) for sample in data["top"]]
    title = f"effective sample size {data['effective_sample_size']:.1f}, entropy {data['entropy']:.3f} nats"
    return Answer(data=data, view=table(title, facts, rows))
