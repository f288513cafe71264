"""`tempera doctor`: find what would fail on this machine or on a cluster, and say what to do about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.commands.combined import AllowHosts
from deploy.console import ERR, Answer, table, working
from deploy.runs.rundir import RunError

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}
ANSWER = '{"findings": '


def doctor(
    *,
    out: Path = Path("runs"),
    index: Path | None = None,
    address: str | None = None,
    cluster: bool = False,
    python: str = "python",
    allow_hosts: AllowHosts = (),
) -> Answer:
    """Check versions, memory, disk, ports, token, devices and, if named, an index; on a cluster, every node.

    Args:
        out: where runs would be written.
        index: index.parquet to check; a sample of each shard is read.
        address: URL of a cluster's dashboard, to check that cluster, with paths as its nodes see them.
        cluster: check the cluster that this process is part of, as --address does from outside.
        python: the interpreter with the dependencies, on that cluster's head.
    """
    if address is not None:
        findings = _ask_cluster(address, out, index, python, allow_hosts)
    else:
        from deploy.remote.doctor.checks import examine
        from deploy.remote.doctor.cluster import examine_cluster

        check = examine_cluster if cluster else examine
        with working("examining every node" if cluster else "examining this machine"):
            findings = [asdict(finding) for finding in check(directory=out, index=index, allow_hosts=allow_hosts)]
    # One machine needs no column for its name.
    node = ("node",) if any(finding["node"] for finding in findings) else ()
    columns, fields = ("", "check", *node, "found", "what to do"), ("check", *node, "found", "advice")
    rows = [(MARKS[finding["level"]], *(finding[field] for field in fields)) for finding in findings]
    fine = all(finding["level"] != "error" for finding in findings)
    return Answer(data={"findings": findings}, view=table("", columns, rows), ok=fine)


def _ask_cluster(
    address: str, out: Path, index: Path | None, python: str, allow_hosts: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Run the same command as a job on the cluster's head; its answer is the last line of the job's log."""
    from deploy.remote.jobs import ray_jobs

    words = ["doctor", "--cluster", "--json", "--out", str(out), *(("--index", str(index)) if index else ())]
    words += ["--allow-hosts", *allow_hosts] if allow_hosts else []
    client = ray_jobs.connect(address)
    job_id = ray_jobs.submit(client, ray_jobs.entry_point(words, python=python), run="doctor", out=str(out))
    lines: list[str] = []
    with working(f"asking every node of {address}"):
        status = ray_jobs.follow(client, job_id, show=lines.append, advance=lambda _: None)
    answers = [line for line in lines if line.startswith(ANSWER)]
    if not answers:
        # The reason is in what the job printed: no interpreter, no package, no memory.
        for line in lines[-20:]:
            ERR.print(line, markup=False, highlight=False, soft_wrap=True)
        raise RunError(f"the doctor's job on {address} {status} without an answer; its log is above.")
    findings: list[dict[str, Any]] = json.loads(answers[-1])["findings"]
    return findings
