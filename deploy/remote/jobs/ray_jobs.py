"""Runs as jobs of a Ray cluster: submit, follow, list, stop, through the cluster's job server.

The token comes from the environment and travels in a header only. The entry point runs on the head, and is the same
`tempera train` as on a laptop; the code is shipped (`deploy.remote.jobs.shipping`).
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
"""How long a lost log connection is tried again before following gives up; the job goes on."""
POLL_S = 0.5
NOT_YET = "No available agent"
"""What the job server says while the head is starting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run on the cluster, as its job server tells."""

    job_id: str
    """What `tempera stop --job` takes."""
    run: str
    """Name of the run."""
    out: str
    """Run directory, on the cluster."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    started: str
    """When, in this machine's time."""
    minutes: float
    """How long it has run."""
    message: str
    """What the job server says of it; its last line."""


def connect(address: str) -> Any:
    """A client of the job server.

    Args:
        address: URL of the cluster's dashboard, http://HEAD:8265.

    Raises:
        RunError: not a URL, no token in the environment, nobody answers, or the token is refused.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise RunError(f"--address must be the URL of the cluster's dashboard, http://HEAD:8265; got {address!r}.")
    if url.scheme == "http" and url.hostname not in (LOOPBACK, "localhost", "::1"):
        say(f"[yellow]{url.hostname} is reached without TLS: who can read the network can read the token.[/]")
    require_token()
    os.environ["RAY_API_SERVER_ADDRESS"] = address.rstrip("/")  # else RAY_ADDRESS would win over the argument
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address.rstrip("/"))
    except AuthenticationError as error:
        advice = "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token."
        raise RunError(f"{address} refuses this token. {advice}") from error
    except (OSError, RuntimeError) as error:
        raise RunError(f"no job server answers at {address}: {str(error).splitlines()[0]}") from error


def labelled_roles(address: str) -> set[str]:
    """The roles that the labels of the cluster's living nodes name."""
    from ray.util.state import list_nodes

    nodes = list_nodes(address, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False)
    return {node.labels[ROLE_LABEL] for node in nodes if ROLE_LABEL in (node.labels or {})}


def placement(roles: Iterable[str]) -> list[str]:
    """Settings of a run that keep loaders and ranks on the nodes labelled for them."""
    groups = {LOADER: "fleet", TRAINER: "trainers"}
    return [f'{groups[role]}.node_labels={{"{ROLE_LABEL}":"{role}"}}' for role in (LOADER, TRAINER) if role in roles]


def entry_point(words: Sequence[str], *, python: str = "python") -> str:
    """The command line of a job; the job server hands it to a shell, so every word is quoted.

    Args:
        words: a `tempera` command and its arguments.
        python: the interpreter on the cluster. With -P the shipped packages win over what lies in its folder.
    """
    return shlex.join([python, "-P", "-m", "deploy.cli", *words])


def submit(client: Any, entrypoint: str, *, run: str, out: str, modules: Iterable[Path] = (), api_port: int = 0) -> str:
    """Start a job on the cluster's head.

    Args:
        client: from `connect`.
        entrypoint: from `entry_point`; nothing secret.
        run: name of the run.
        out: its directory on the cluster.
        modules: code of one's own to take along.
        api_port: port of the run's API on the head; 0 takes a free one.

    Returns:
        The job's identity.

    Raises:
        RunError: the job server refuses it.
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
                if NOT_YET not in str(error) or time.monotonic() > deadline:
                    raise RunError(f"the cluster refuses the job: {str(error).splitlines()[0]}") from error
            time.sleep(POLL_S)


def follow(client: Any, job_id: str, *, show: Callable[[str], None], advance: Callable[[dict[str, Any]], None]) -> str:
    """Pass on the job's log until it ends.

    Args:
        client: from `connect`.
        job_id: whose log.
        show: takes each line.
        advance: takes the facts of each progress line instead.

    Returns:
        How it ended.

    Raises:
        RunError: the connection was lost and stays lost; the job goes on.
    """
    reader = _LogReader(show, advance)
    lost_s: float | None = None
    while True:
        try:
            asyncio.run(reader.read(client, job_id))
            return _wait_for_end(client, job_id, patience_s=RECONNECT_S).status
        except (OSError, RuntimeError) as error:  # aiohttp's connection errors are OSErrors
            now = time.monotonic()
            lost_s = now if reader.moved or lost_s is None else lost_s
            if now - lost_s > RECONNECT_S:
                raise RunError(f"the log of {job_id} is lost ({error}); the job goes on.") from error
            time.sleep(POLL_S)


class _LogReader:
    """Cuts a log into lines; a log that is read again from its start is passed on from where it broke off."""

    def __init__(self, show: Callable[[str], None], advance: Callable[[dict[str, Any]], None]) -> None:
        self._show, self._advance = show, advance
        self._passed_on = 0
        self.moved = False
        """Whether the last reading brought anything new."""

    async def read(self, client: Any, job_id: str) -> None:
        """Read until the job server ends the log."""
        self.moved = False
        number, rest = 0, ""
        async for chunk in client.tail_job_logs(job_id):
            *lines, rest = (rest + chunk).split("\n")
            for line in lines:
                number += 1
                if number > self._passed_on:
                    self._pass_on(line)
        if rest:
            self._pass_on(rest)

    def _pass_on(self, line: str) -> None:
        self._passed_on += 1
        self.moved = True
        facts = progress_lines.decode(line)
        if facts is None:
            self._show(line)
        else:
            self._advance(facts)


def list_jobs(client: Any) -> list[Job]:
    """Our jobs, the newest first."""
    ours = [job for job in client.list_jobs() if "tempera_run" in (job.metadata or {})]
    return [_described(job) for job in sorted(ours, key=lambda job: job.start_time or 0, reverse=True)]


def stop(client: Any, job_id: str) -> Job:
    """Ask a job to write a checkpoint and end, and wait until it has.

    Raises:
        RunError: there is no such job, or it does not end.
    """
    try:
        client.stop_job(job_id)
    except RuntimeError as error:
        raise RunError(f"no job {job_id!r} on this cluster; `tempera jobs` lists them.") from error
    return _wait_for_end(client, job_id, patience_s=GRACE_S + RECONNECT_S)


def _wait_for_end(client: Any, job_id: str, *, patience_s: float) -> Job:
    deadline = time.monotonic() + patience_s
    while (job := _described(client.get_job_info(job_id))).status not in ENDED:
        if time.monotonic() > deadline:
            raise RunError(f"{job_id} is still {job.status} after {patience_s:.0f} s; see its log.")
        time.sleep(POLL_S)
    return job


def _described(job: Any) -> Job:
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
