"""`tempera replay`, `inspect`: a finished run drawn again from its log, and its table looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from deploy.console import Answer, progress_bar, table
from deploy.rundir import RunDir, RunError, find_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scoring import RunLog, SelectionConfig


def replay(path: Positional[Path]) -> Answer:
    """Draw every window of a run again from its log, and compare digests with what was handed out.

    Args:
        path: the run's directory; the run must not be alive.
    """
    from scoring import replay_run

    with _opened(RunDir(path).require()) as (log, config, distance), progress_bar("drawing windows again") as advance:
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
    found = find_run(run)
    data = _inspect_alive(found, top, export) if found.endpoint() else _inspect_finished(found, top, export)
    facts = ("sample_id", "probability", "times_drawn", "distance")
    rows = [tuple(sample[name] for name in facts) for sample in data["top"]]
    title = f"effective sample size {data['effective_sample_size']:.1f}, entropy {data['entropy']:.3f} nats"
    return Answer(data=data, view=table(title, facts, rows))


def _inspect_alive(run: RunDir, top: int, export: Path | None) -> dict[str, Any]:
    from deploy.client import RunClient

    return RunClient.attach(run).inspect(top=top, export=export)


def _inspect_finished(run: RunDir, top: int, export: Path | None) -> dict[str, Any]:
    from scoring import Selection
    from scoring.inspect import export_table, table_summary

    with _opened(run) as (log, config, distance):
        selection = Selection(distance, config, runlog=log)
        data = table_summary(selection, top=top)
        return data if export is None else data | {"exported_rows": export_table(selection, export)}


@contextmanager
def _opened(run: RunDir) -> Iterator[tuple[RunLog, SelectionConfig, NDArray[np.float32] | None]]:
    """The log of a run that is not alive, its selection's configuration and its distances."""
    from deploy.config import load_config
    from deploy.launch import prototype_distances
    from deploy.rank import selection_config
    from loader import ShardIndex
    from scoring import RunLog

    if run.endpoint():
        raise RunError(f"{run.path} is alive; its log has one writer. Ask again when it has stopped.")
    if not run.log.is_file():
        raise RunError(f"{run.path} has no log (run.sqlite is missing): the run has not started.")
    config = load_config(run.config)
    index = ShardIndex.load(config.data.index)
    part: Any = selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)
    with closing(RunLog(run.log)) as log:
        yield log, part, prototype_distances(config)
