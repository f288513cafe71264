"""`tempera set`, `release`, `scale`, `pause`, `continue`, `stop`, `log`: change a live run, and read who changed what.

They use only the run's HTTP API, so they answer at once: neither Ray nor torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Group
from tyro.conf import Positional, arg

from deploy.api.client import RunClient, author_name, find_run_here
from deploy.api.token import write_token
from deploy.commands.combined import AnyRun, LiveRun, Reason
from deploy.commands.jobs import stop_job
from deploy.console import Answer, say, table, working
from deploy.runs.rundir import RunError, find_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The options that these commands share."""

    run: LiveRun = None
    reason: Reason = ""
    expected_version: int | None = None
    """Refuse if the run was changed since this control version."""
    dry_run: bool = False
    """Change nothing; show when the change would be in force."""


ChangeOptions = Annotated[Change, arg(name="")]
DEFAULTS = Change()


def set_effective_size(value: Positional[float], options: ChangeOptions = DEFAULTS) -> Answer:
    """Hold the effective dataset size at a value until it is released.

    Args:
        value: fraction of the data in (0, 0.632].
    """
    return _control("effective_size", value, options)


def set_temperature(value: Positional[float], options: ChangeOptions = DEFAULTS) -> Answer:
    """Hold the temperature at a value until it is released.

    Args:
        value: positive; a low one draws mostly prototypes, a high one all images alike.
    """
    return _control("temperature", value, options)


def set_policy(value: Positional[str], options: ChangeOptions = DEFAULTS) -> Answer:
    """Change the sampling policy.

    Args:
        value: uniform, uniform_replacement, prototypical, hard, ...
    """
    return _control("policy", value, options)


def set_distances(
    file: Positional[Path],
    *,
    run: LiveRun = None,
    reason: Reason = "",
    expected_version: int | None = None,
) -> Answer:
    """Draw by the distances of another file of `tempera score` from the next window on.

    Args:
        file: prototypes.parquet of the run's own data, below the run's directory or beside its index.
        expected_version: refuse if the run was changed since this control version.
    """
    # A run on another machine has its own files; there the path is taken as it is written.
    value = str(file if find_run_here(run) is None else file.resolve())
    return _control("distances", value, Change(run=run, reason=reason, expected_version=expected_version))


def release(options: ChangeOptions = DEFAULTS) -> Answer:
    """Return the effective size to the schedule."""
    return _control("release", None, options)


def scale(loaders: Positional[int], *, run: LiveRun = None, reason: Reason = "") -> Answer:
    """Change the number of loader workers.

    Args:
        loaders: desired number, 1 or more.
    """
    with RunClient.find(run) as client:
        reply = client.scale(loaders, author=author_name(), reason=reason)
    return Answer(data=reply, view=f"loaders: {reply['previous']} -> {reply['size']}")


def pause(*, run: LiveRun = None, reason: Reason = "") -> Answer:
    """Pause a live run before its next step; `tempera continue` continues it."""
    with RunClient.find(run) as client:
        reply = client.post("pause", author=author_name(), reason=reason)
    return Answer(data=reply, view="the run pauses before its next step; `tempera continue` continues it.")


def go_on(*, run: LiveRun = None, reason: Reason = "") -> Answer:
    """Continue a paused run."""
    with RunClient.find(run) as client:
        reply = client.post("resume", author=author_name(), reason=reason)
    return Answer(data=reply, view="the run continues.")


def stop(*, run: LiveRun = None, reason: Reason = "", job: str | None = None, address: str | None = None) -> Answer:
    """Ask a live run to write a checkpoint and end; `tempera resume` continues it.

    Args:
        job: a submitted job instead, named as in `tempera jobs`; submitting the same run again continues it.
        address: URL of the cluster's dashboard, for a job.
    """
    if job is not None:
        return stop_job(job, address)
    # A run on another machine has no directory here to look at.
    found = find_run_here(run)
    if found is not None and not found.is_alive:
        raise RunError(f"{found.path} is not running; there is nothing to stop.")
    with RunClient.find(run) as client:
        reply = client.post("stop", author=author_name(), reason=reason)
    return Answer(data=reply, view="the run was asked to stop; it writes a checkpoint first.")


def token(*, run: LiveRun = None, renew: bool = False) -> Answer:
    """Print the path of the file with the token of a live run's API.

    Args:
        renew: make a new token; the old one is refused from then on.
    """
    found = find_run(run)
    if found.api_url() is None:
        raise RunError(f"{found.path} is not running, so it has no token. `tempera resume {found.path}` makes one.")
    if renew:
        write_token(found.api_token)
    data = {"token_file": str(found.api_token), "renewed": renew}
    return Answer(data=data, view=f"{'a new' if renew else 'the'} token is in {found.api_token}")


def log(*, run: AnyRun = None, limit: int = 40) -> Answer:
    """Show the run's log: each change, its author, and the window in which it took effect.

    Args:
        limit: number of entries, the newest ones.
    """
    from deploy.observe.run_log import log_entries, log_table

    found = find_run_here(run)
    if found is None or found.is_alive:
        with RunClient.find(run) as client:
            entries = client.log(limit=limit)
    else:
        entries = log_entries(found, limit=limit)
    return Answer(data={"entries": entries}, view=log_table(entries))


def _control(kind: str, value: Any, options: Change) -> Answer:
    """Make a change; with --dry-run only say when it would be in force and what it would do."""
    with RunClient.find(options.run) as client:
        state = client.state()
        control, median_s = state["control"], state["latency"]["p50_s"]
        bound = f"at most {control['bound_steps']} steps"
        bound += "" if control["bound_s"] is None else f", {control['bound_s']:.1f} s at the present speed"
        bound += "" if median_s is None else f" (so far {median_s:.1f} s, median)"
        if options.dry_run:
            data = {"kind": kind, "value": value, **control, "latency": state["latency"]}
            # /solve knows one value's effect; a release brings the schedule's, which changes from window to window.
            data |= {} if kind == "release" else client.get("solve", **{kind: value})
            title = f"would be in force from window {data['next_window']} (step {data['next_step']}), in {bound}"
        else:
            say(f"in force in {bound}")
            with working("waiting for the run"):
                data = client.control(
                    kind, value, author=author_name(), reason=options.reason, expected_version=options.expected_version
                )
            title = f"in force from window {data['window']} (step {data['step']})"
    rows = [(name.replace("_", " "), item) for name, item in data.items() if not isinstance(item, dict)]
    return Answer(data=data, view=Group(title, table("", ("", ""), rows)))
