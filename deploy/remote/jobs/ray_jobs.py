"""Runs as jobs of a Ray cluster: submit, follow, list, stop, through the cluster's job server.

The token comes from the environment and travels in a header only. The entry point runs on the head and is the same
`tempera train` as on a laptop; the code is shipped with the job (`deploy.remote.jobs.shipping`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.console import say
from deploy.launch.cluster import LOOPBACK, require_token
from deploy.observe import progress_lines
from deploy.remote.jobs.shipping import GRACE_S, runtime_environment
from deploy.runs.rundir import RunError

ROLE_LABEL = "tempera-role"
"""Node label that our manifests and cluster descriptions set: loader or trainer."""
LOADER, TRAINER = "loader", "trainer"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
RECONNECT_S = 60.0
"""Seconds that a lost log connection is retried before following gives up; the job goes on."""
POLL_S = 0.5
NOT_YET = "No available agent"
"""The job server's message while the head is starting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run on the cluster, as its job server reports it."""

    job_id: str
    run: str
    out: str
    """Run directory, on the cluster."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    started: str
    """Start, in this machine's time."""
    minutes: float
    message: str
    """Last line of the job server's message about it."""


def connect(address: str) -> Any:
    """Return a client of the job server at the URL of the cluster's dashboard, http://HEAD:8265.

    Raises:
        RunError: not a URL, no token in the environment, no answer, or the token is refused.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise RunError(f"--address must be the URL of the cluster's dashboard, http://HEAD:8265; got {address!r}.")
    if url.scheme == "http" and url.hostname not in (LOOPBACK, "localhost", "::1"):
        say(f"[yellow]{url.hostname} is reached without TLS: anyone who can read the network can read the token.[/]")
    # Before the import, which reads the authentication's mode.
    require_token()
    os.environ["RAY_API_SERVER_ADDRESS"] = address.rstrip("/")  # else RAY_ADDRESS would win over the argument
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address.rstrip("/"))  # asks for the server's version at once
    except AuthenticationError as error:
        advice = "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token."
        raise RunError(f"{address} refuses this token. {advice}") from error
    except (OSError, RuntimeError) as error:
        raise RunError(f"no job server answers at {address}: {str(error).splitlines()[0]}") from error


def labelled_roles(address: str) -> set[str]:
    """Return the roles that the labels of the cluster's living nodes name."""
    from ray.util.state import list_nodes

    nodes = list_nodes(address, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False)
    return {node.labels[ROLE_LABEL] for node in nodes if ROLE_LABEL in (node.labels or {})}


def placement(roles: Iterable[str]) -> list[str]:
    """Return the settings of a run that keep loaders and ranks on the nodes labelled for them."""
    groups = {LOADER: "fleet", TRAINER: "trainers"}
    return [f'{groups[role]}.node_labels={{"{ROLE_LABEL}":"{role}"}}' for role in (LOADER, TRAINER) if role in roles]


def entry_point(words: Sequence[str], *, python: str = "python") -> str:
    """Return the command line of a job, with every word quoted: the job server passes it to a shell."""
    # -P makes the shipped packages win over files in the job's folder.
    return shlex.join([python, "-P", "-m", "deploy.cli", *words])


def submit(client: Any, entrypoint: str, *, run: str, out: str, modules: Iterable[Path] = (), api_port: int = 0) -> str:
    """Start a job on the cluster's head, and return its identity.

    Ray shows the entry point to everybody: it must hold nothing secret. `modules` and `api_port` as for
    `runtime_environment`.

    Raises:
        RunError: the job server refuses the job.
    """
    job_id = f"{run}-{secrets.token_hex(4)}"
    deadline = time.monotonic() + RECONNECT_S
    with runtime_environment(modules, api_port=api_port) as environment:
        job = {"entrypoint": entrypoint, "submission_id": job_id, "runtime_env": environment}
        while True:
            try:
                client.submit_job(**job, metadata={"tempera_run": run, "tempera_out": out})
                return job_id
            except RuntimeError as error:
                # A head that has just started answers before its agent, which runs the jobs, does.
                if NOT_YET not in str(error) or time.monotonic() > deadline:
                    raise RunError(f"the cluster refuses the job: {str(error).splitlines()[0]}") from error
            time.sleep(POLL_S)


def follow(client: Any, job_id: str, *, show: Callable[[str], None], advance: Callable[[dict[str, Any]], None]) -> str:
    """Pass on the job's log until the job ends, and return its last status.

    Each line goes to `show`; of a progress line only the facts, to `advance`.

    Raises:
        RunError: the connection was lost and stays lost; the job goes on.
    """
    passed_on = 0  # after a lost connection the log is read from its start: these lines were shown before

    def pass_on(line: str) -> None:
        nonlocal passed_on
        passed_on += 1
        facts = progress_lines.decode(line)
        if facts is None:
            show(line)
        else:
            advance(facts)

    async def read() -> None:
        number, rest = 0, ""
        async for chunk in client.tail_job_logs(job_id):
            # Chunks end anywhere, also within a line.
            *lines, rest = (rest + chunk).split("\n")
            for line in lines:
                number += 1
                if number > passed_on:
                    pass_on(line)
        if rest:
            pass_on(rest)

    lost_s: float | None = None
    while True:
        before = passed_on
        try:
            asyncio.run(read())
            return _wait_for_end(client, job_id, patience_s=RECONNECT_S).status
        except (OSError, RuntimeError) as error:  # aiohttp's connection errors are OSErrors
            now = time.monotonic()
            # Patience counts from the last connection that brought a new line.
            lost_s = now if passed_on > before or lost_s is None else lost_s
            if now - lost_s > RECONNECT_S:
                raise RunError(f"the log of {job_id} is lost ({error}); the job goes on.") from error
            time.sleep(POLL_S)


def list_jobs(client: Any) -> list[Job]:
    """Return our jobs, the newest first."""
    # Other programs may use the same cluster; `submit` marks ours in their metadata.
    ours = [job for job in client.list_jobs() if "tempera_run" in (job.metadata or {})]
    return [_described(job) for job in sorted(ours, key=lambda job: job.start_time or 0, reverse=True)]


def stop(client: Any, job_id: str) -> Job:
    """Ask a job to write a checkpoint and end, and wait until it has.

    Raises:
        RunError: there is no such job, or it does not end in time.
    """
    try:
        client.stop_job(job_id)
    except RuntimeError as error:
        raise RunError(f"no job {job_id!r} on this cluster; `tempera jobs` lists them.") from error
    # The server answers at once; the job then writes its checkpoint, for which Ray gives it GRACE_S.
    return _wait_for_end(client, job_id, patience_s=GRACE_S + RECONNECT_S)


def _wait_for_end(client: Any, job_id: str, *, patience_s: float) -> Job:
    deadline = time.monotonic() + patience_s
    while (job := _described(client.get_job_info(job_id))).status not in ENDED:
        if time.monotonic() > deadline:
            raise RunError(f"{job_id} is still {job.status} after {patience_s:.0f} s; see its log.")
        time.sleep(POLL_S)
    return job


def _described(job: Any) -> Job:
    """Return Ray's description of a job as ours."""
    # Ray counts in milliseconds, and a job that runs has no end.
    start_s = (job.start_time or 0) / 1e3
    end_s = (job.end_time or time.time() * 1e3) / 1e3
    metadata = job.metadata or {}
    return Job(
        job_id=job.submission_id or job.job_id,
        run=metadata.get("tempera_run", ""),
        out=metadata.get("tempera_out", ""),
        status=str(getattr(job.status, "value", job.status)),
        started=datetime.fromtimestamp(start_s).strftime("%Y-%m-%d %H:%M:%S"),
        minutes=round((end_s - start_s) / 60, 2),
        message=(job.message or "").strip().splitlines()[-1] if job.message else "",
    )
