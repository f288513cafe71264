"""`tempera submit`, `jobs`: runs on an existing cluster, from a machine that reaches its dashboard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from deploy.commands.combined import AS_NAMED, ClusterUrl, Combination, Settings
from deploy.console import ERR, Answer, say, table, working
from deploy.runs.rundir import RunError

if TYPE_CHECKING:
    from deploy.runs.config import RunConfig

Roles = Literal["auto", "yes", "no"]


def submit(
    name: Positional[str],
    *,
    address: ClusterUrl,
    index: Path,
    out: Path,
    prototypes: Path | None = None,
    test_index: Path | None = None,
    combined: Combination = AS_NAMED,
    set: Settings = (),
    module: tuple[Path, ...] = (),
    roles: Roles = "auto",
    python: str = "python",
    api_port: int = 0,
    detach: bool = False,
    dry_run: bool = False,
) -> Answer:
    """Start a named run as a job of a Ray cluster, or continue the run that its directory holds.

    Args:
        name: as for `tempera train`.
        index: index.parquet of the training images, on the cluster.
        out: run directory on storage that all nodes share.
        prototypes: prototypes.parquet on the cluster; beside the index by default, if it is there.
        test_index: index.parquet of held-out labelled images, on the cluster.
        module: your packages or files to ship, for `extensions` and `curriculum.user_policies`.
        roles: keep loaders and ranks on nodes labelled tempera-role=loader and =trainer; auto: where there are any.
        python: the interpreter with the dependencies, on the cluster's head.
        api_port: port of the run's API on the head's loopback, a known one to forward; 0 takes a free one.
        detach: return once the job is submitted, instead of following its log.
        dry_run: submit nothing; show the plan and the files that would be shipped.
    """
    from deploy.remote.jobs import ray_jobs

    named = {"index": index, "out": out, "prototypes": prototypes, "test-index": test_index}
    paths = {option: path for option, path in named.items() if path is not None}
    # The job's folder is a copy of the packages on the head: a relative path would be below that.
    for option, path in paths.items():
        if not path.is_absolute():
            raise RunError(f"--{option} must be an absolute path on the cluster; got {path}.")
    words = ["train", name, *(word for option, path in paths.items() for word in (f"--{option}", str(path)))]
    settings = [*combined.settings(), *set]
    config = _check_run(name, index, settings, module)
    client = ray_jobs.connect(address)
    both = (ray_jobs.LOADER, ray_jobs.TRAINER)
    labelled = ray_jobs.labelled_roles(address) if roles == "auto" else both if roles == "yes" else ()
    placed = ray_jobs.placement(labelled)
    settings += placed
    entry = ray_jobs.entry_point([*words, *(["--set", *settings] if settings else [])], python=python)
    if dry_run:
        return _plan(config, entry, module)
    with working(f"submitting the run to {address}"):
        job_id = ray_jobs.submit(client, entry, run=config.name, out=str(out), modules=module, api_port=api_port)
    say(f"job {job_id} runs on {address}; `tempera stop --job {job_id} --address {address}` ends it with a checkpoint")
    if api_port:
        say(
            f"its page: forward the head's port {api_port} (ssh -L, kubectl port-forward, ray attach -p) and "
            f"open http://localhost:{api_port}; the token is in {out}/api-token"
        )
    facts: dict[str, Any] = {"job": job_id, "run": str(out), "placement": placed}
    if detach:
        return Answer(data=facts | {"status": "SUBMITTED"}, view=job_id)
    status = _follow(client, job_id)
    return Answer(data=facts | {"status": status}, view=f"{job_id}: {status}", ok=status != "FAILED")


def jobs(*, address: ClusterUrl) -> Answer:
    """List the runs that were submitted to a cluster."""
    from deploy.remote.jobs import ray_jobs

    with working(f"asking {address}"):
        found = ray_jobs.list_jobs(ray_jobs.connect(address))
    rows = [(job.job_id, job.status, job.run, job.out, job.started, job.minutes, job.message) for job in found]
    view = table("", ("job", "status", "run", "directory", "started", "minutes", ""), rows)
    return Answer(data={"jobs": [asdict(job) for job in found]}, view=view)


def stop_job(job: str, address: str | None) -> Answer:
    """Ask a job to write a checkpoint and end, and wait until it has."""
    from deploy.remote.jobs import ray_jobs

    if address is None:
        raise RunError("--job needs --address, the URL of the cluster's dashboard, as in http://127.0.0.1:8265.")
    with working(f"{job} writes a checkpoint and ends"):
        ended = ray_jobs.stop(ray_jobs.connect(address), job)
    return Answer(data=asdict(ended), view=f"{job}: {ended.status}; submitting the same run again continues it.")


def _check_run(name: str, index: Path, settings: Sequence[str], modules: tuple[Path, ...]) -> RunConfig:
    """Return the run, made here first: a wrong name or field is one line now, not a failed job later."""
    from deploy.runs.config import DataConfig
    from deploy.runs.overrides import override
    from deploy.runs.recipes import RUNS
    from trainer.config import choose

    sys.path[:0] = [str(path.resolve().parent) for path in modules]  # `extensions` are imported when the run is made
    return override(choose(name, RUNS, "a run")(DataConfig(index=str(index))), settings)


def _plan(config: RunConfig, entry: str, modules: tuple[Path, ...]) -> Answer:
    from deploy.commands.runs import plan_answer
    from deploy.remote.jobs.shipping import shipped_files

    files = [*shipped_files(), *modules]
    shipped = {"files": len(files), "bytes": sum(path.stat().st_size for path in files if path.is_file())}
    say(f"would submit: {entry}")
    say(f"would ship {shipped['files']} files, {shipped['bytes'] / 2**20:.1f} MiB")
    return plan_answer(config, entrypoint=entry, shipped=shipped)


def _follow(client: Any, job_id: str) -> str:
    """Show the job's log and a bar of its progress until it ends; return its last status."""
    from deploy.observe.training_bar import show_progress, training_progress
    from deploy.remote.jobs.ray_jobs import follow

    with training_progress() as progress:
        task = progress.add_task("training", total=None, facts="")
        return follow(
            client,
            job_id,
            show=lambda line: ERR.print(line, markup=False, highlight=False, soft_wrap=True),
            advance=lambda facts: show_progress(progress, task, facts),
        )
