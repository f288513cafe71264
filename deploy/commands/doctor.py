"""`tempera doctor`: what could go wrong here, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from deploy.console import Answer, table

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}


def doctor(*, out: Path = Path("runs"), index: Path | None = None) -> Answer:
    """Check versions, memory, disk, devices and, if named, an index against its shards.

    Args:
        out: where runs would be written.
        index: index.parquet to check.
    """
    from deploy.doctor import examine

    findings = examine(directory=out, index=index)
    rows = [(MARKS[finding.level], finding.check, finding.found, finding.advice) for finding in findings]
    return Answer(
        data={"findings": [asdict(finding) for finding in findings]},
        view=table("", ("", "check", "found", "what to do"), rows),
        ok=all(finding.level != "error" for finding in findings),
    )
