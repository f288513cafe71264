"""`tempera set`, `release`, `scale`, `log`: change a live run, and read who changed what and when."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from deploy.console import Answer, table
from deploy.rundir import RunError, find_run


def set_effective_size(
    value: Positional[float], *, run: Path | None = None, reason: str = "", expected_version: int | None = None
) -> Answer:
    """Hold the effective dataset size at a value until it is released.

    Args:
        value: fraction of the data in (0, 0.632].
        run: the run's directory; by default the one that is alive under runs/.
        reason: why, for the log.
        expected_version: refuse when somebody else changed the run since this control version.
    """
    return _control(run, "effective_size", value, reason, expected_version)


def set_temperature(
    value: Positional[float], *, run: Path | None = None, reason: str = "", expected_version: int | None = None
) -> Answer:
    """Hold the temperature at a value until it is released.

    Args:
        value: positive; low draws the prototypes most, high draws all alike.
        run: the run's directory; by default the one that is alive under runs/.
        reason: why, for the log.
        expected_version: refuse when somebody else changed the run since this control version.
    """
    return _control(run, "temperature", value, reason, expected_version)


def set_policy(
    value: Positional[str], *, run: Path | None = None, reason: str = "", expected_version: int | None = None
) -> Answer:
    """Change the sampling policy.

    Args:
        value: uniform, uniform_replacement, prototypical, hard, ...
        run: the run's directory; by default the one that is alive under runs/.
        reason: why, for the log.
        expected_version: refuse when somebody else changed the run since this control version.
    """
    return _control(run, "policy", value, reason, expected_version)


def release(*, run: Path | None = None, reason: str = "", expected_version: int | None = None) -> Answer:
    """Give the effective size back to the schedule.

    Args:
        run: the run's directory; by default the one that is alive under runs/.
        reason: why, for the log.
        expected_version: refuse when somebody else changed the run since this control version.
    """
    return _control(run, "release", None, reason, expected_version)


def scale(loaders: Positional[int], *, run: Path | None = None, reason: str = "") -> Answer:
    """Change the number of loader workers.

    Args:
        loaders: how many, 1 or more.
        run: the run's directory; by default the one that is alive under runs/.
        reason: why, for the log.
    """
    from deploy.client import RunClient

    reply = RunClient.attach(find_run(run)).scale(loaders, author=_author(), reason=reason)
    return Answer(data=reply, view=f"loaders: {reply['previous']} -> {reply['size']}")


def stop(*, run: Path | None = None) -> Answer:
    """Ask a live run to write a checkpoint and end; `tempera resume` continues it.

    Args:
        run: the run's directory; by default the one that is alive under runs/.
    """
    found = find_run(run)
    if found.endpoint() is None:
        raise RunError(f"{found.path} is not running; there is nothing to stop.")
    found.stop_request.touch()
    return Answer(data={"run": str(found.path)}, view=f"{found.path} was asked to stop; it writes a checkpoint first.")


def log(*, run: Path | None = None, limit: int = 40) -> Answer:
    """Show the run's log: each change, its author, and the window in which it took effect.

    Args:
        run: the run's directory; by default the one that is alive under runs/, or the newest.
        limit: how many of the last entries.
    """
    from deploy.logs import log_entries, log_table

    entries = log_entries(find_run(run), limit=limit)
    return Answer(data={"entries": entries}, view=log_table(entries))


def _control(run: Path | None, kind: str, value: Any, reason: str, expected_version: int | None) -> Answer:
    from deploy.client import RunClient

    client = RunClient.attach(find_run(run))
    reply = client.control(kind, value, author=_author(), reason=reason, expected_version=expected_version)
    rows = [(name.replace("_", " "), item) for name, item in reply.items()]
    return Answer(
        data=reply, view=table(f"in force from window {reply['window']} (step {reply['step']})", ("", ""), rows)
    )


def _author() -> str:
    return getpass.getuser()
