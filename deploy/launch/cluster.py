"""Start and join Ray safely: token authentication always on, the dashboard on the loopback interface.

Ray reads its authentication mode when it is imported, so this module imports it inside its functions, after the
environment is set.
1. `cluster` uses the Ray that RAY_ADDRESS names, as in a submitted job, or else starts one on this machine with a token
   in the run directory (or the one that RAY_AUTH_TOKEN_PATH names), and shuts down what it started.
2. `join` connects this process to a running cluster with that cluster's token.
3. `head_watched` logs when a cluster's head is lost, and the command that continues the run.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from deploy.observe.periodic import periodic
from deploy.runs.rundir import Endpoint, RunError

NAMESPACE = "tempera"
TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the variable's name
"""Environment variable with the token itself, as containers get it from a secret."""
LOOPBACK = "127.0.0.1"
ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray runs on one machine only, and its services listen on the loopback interface."""
HEAD_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
HEAD_PATIENCE_S = 15
"""Seconds that the processes of a local cluster wait for a lost head before they end. Ray's default of 60 seconds is
for heads that are started again elsewhere; a local one never comes back."""
HEAD_LOOK_S = 2.0
OBJECT_STORE_BYTES = 512 * 2**20
"""Object store of a local cluster: batches in flight, a few MiB each; far below a laptop's memory."""


def authenticate(token_path: Path) -> None:
    """Turn token authentication on for this process and its children; write a new token if there is none."""
    if not token_path.exists():
        token_path.parent.mkdir(parents=True, exist_ok=True)
        # Created with its mode, since a chmod afterwards leaves a moment in which others can read it; O_EXCL follows
        # no link that somebody else put there.
        descriptor = os.open(token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as token:
            token.write(secrets.token_hex(32))
    # Variables, since children inherit them; absolute, since Ray Train gives ranks another working directory.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path.resolve())


def token_file() -> Path:
    """Return the path where Ray looks for a token file."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def set_ray_defaults() -> None:
    """Set the environment variables that Ray reads when it is imported; the user's own values win."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # An actor that reserves no GPU still sees them; with 1, as in older versions of Ray, it would not.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def cluster(directory: Path, *, num_cpus: int) -> Iterator[Endpoint]:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine, until the block ends.

    A local one has `num_cpus` logical CPUs, and its token and Ray's messages in the directory (a run's). Yields how
    other processes of the same user reach the cluster.
    """
    if not os.environ.get("RAY_ADDRESS"):
        with local_cluster(directory, num_cpus=num_cpus) as endpoint:
            yield endpoint
        return
    set_ray_defaults()
    import ray

    # With the token itself in the environment there is no file to name: processes that join need the variable too.
    token_path = "" if os.environ.get(TOKEN) else str(token_file())
    context: Any = ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield _endpoint(context, token_path)
    finally:
        ray.shutdown()


@contextmanager
def local_cluster(directory: Path, *, num_cpus: int) -> Iterator[Endpoint]:
    """Start Ray on this machine until the block ends. Output of Ray's workers goes to ray.log in the directory.

    Loaders and trainers are placed by the logical CPUs, which do not bind cores.
    """
    # Ray reads its token once in a process, so several clusters of one process must share a token.
    token_path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or directory / ".ray-token")
    # All before the import, which reads the authentication's mode.
    authenticate(token_path)
    os.environ[ONE_MACHINE] = "0"
    os.environ.setdefault(HEAD_PATIENCE, str(HEAD_PATIENCE_S))
    set_ray_defaults()
    import ray

    context: Any = ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_host=LOOPBACK,
        namespace=NAMESPACE,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    endpoint = _endpoint(context, str(token_path.resolve()))
    try:
        # What Ray prints here would end up in the command's answer, which --json promises to be one object.
        with (directory / "ray.log").open("a") as file, redirect_stdout(file):
            yield endpoint
    finally:
        ray.shutdown()


def _endpoint(context: Any, token_path: str) -> Endpoint:
    """Return the endpoint of the cluster whose context `ray.init` returned."""
    return Endpoint(
        address=context.address_info["gcs_address"],
        namespace=NAMESPACE,
        token_path=token_path,
        pid=os.getpid(),
        dashboard=context.address_info.get("webui_url") or "",
    )


@contextmanager
def head_watched(endpoint: Endpoint, *, then: str) -> Iterator[None]:
    """Log when the cluster's head does not answer: soon after, Ray ends this process without naming a remedy.

    `then` is one sentence with what the user can do.
    """
    host, _, port = endpoint.address.rpartition(":")

    # A bare connection fails at once; a call to Ray would wait for the head to return.
    def look() -> None:
        socket.create_connection((host, int(port)), timeout=HEAD_LOOK_S).close()

    trouble = f"Ray's head at {endpoint.address} does not answer; unless it does soon, this process ends. Then {then}"
    with periodic(look, every_s=HEAD_LOOK_S, name="head", trouble=trouble):
        yield


def require_token() -> None:
    """Turn token authentication on with the token of this environment.

    Raises:
        RunError: there is none.
    """
    if not os.environ.get(TOKEN) and not token_file().is_file():
        raise RunError(
            f"a cluster is only talked to with its token. Set RAY_AUTH_TOKEN_PATH to a file with it (there is none at "
            f"{token_file()}), or set {TOKEN}."
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def join(endpoint: Endpoint) -> None:
    """Connect this process to a running cluster, unless it is connected."""
    # A local cluster's services listen on the loopback interface alone; this process must look for them there too.
    if endpoint.address.startswith(f"{LOOPBACK}:"):
        os.environ[ONE_MACHINE] = "0"
    if endpoint.token_path:
        authenticate(Path(endpoint.token_path))
    else:
        require_token()
    set_ray_defaults()
    import ray

    if not ray.is_initialized():
        ray.init(
            address=endpoint.address, namespace=endpoint.namespace, log_to_driver=False, logging_level=logging.WARNING
        )
