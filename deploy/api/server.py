"""Serves the API on a thread of this process for as long as a `with` block lasts.

1. bind the port, so that a taken one is a clear error before anything else starts;
2. write the token, serve, and say in the run directory how to be reached;
3. at the end: stop reading, let answers finish for a moment, take the address and the token away.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import uvicorn

from deploy.api.app import build_app
from deploy.api.connections import WatchedProtocol
from deploy.api.options import HEADER_BYTES, ApiOptions
from deploy.api.parts import Parts
from deploy.api.service import RunService
from deploy.api.token import TokenFile, write_token
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir, RunError, write_json

log = logging.getLogger(__name__)

Exporter = Callable[[Callable[[], dict[str, Any]]], AbstractContextManager[object]]
"""Made from what gives the run's state."""
START_TIMEOUT_S = 20.0
FINISH_S = 2
"""Seconds that answers under way may take when the run ends."""


@contextmanager
def serving(
    config: RunConfig,
    run: RunDir,
    parts: Parts,
    *,
    options: ApiOptions | None = None,
    token_path: Path | None = None,
    exporter: Exporter | None = None,
) -> Iterator[str]:
    """Serve a run.

    Args:
        config: the run's.
        run: its directory.
        parts: its selection and loaders.
        options: where to listen; from the environment by default.
        token_path: where the token is written instead of the run directory; the run is then not announced there.
        exporter: entered while the run is served, to hand its state to somebody else too.

    Yields:
        The server's address, as http://127.0.0.1:PORT.

    Raises:
        RunError: the port is taken.
    """
    options = options or ApiOptions.from_environment()
    announced = token_path is None
    path = token_path or run.api_token
    listener = _listen(options)
    url = options.url(listener.getsockname()[1])
    if options.bind not in ("127.0.0.1", "::1", "localhost"):
        log.warning("the API listens at %s, beyond this machine, and does not encrypt", options.bind)
    write_token(path, options.token)
    try:
        with (
            RunService(config, run, parts) as service,
            _thread(service, options, path, listener),
            exporter(service.state) if exporter else nullcontext(),
        ):
            if announced:
                write_json(run.api, {"url": url, "pid": os.getpid()})
            log.info("API at %s", url)
            yield url
    finally:
        listener.close()
        for secret in (path, path.with_name("open.html")):
            secret.unlink(missing_ok=True)
        if announced:
            run.api.unlink(missing_ok=True)


@contextmanager
def _thread(service: RunService, options: ApiOptions, token: Path, listener: socket.socket) -> Iterator[None]:
    app = build_app(service, options=options, token=TokenFile(token))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=WatchedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,  # what strangers send is not worth a line each; our own log has what matters
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=FINISH_S,
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), name="api", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the API server did not start")
        time.sleep(0.01)
    try:
        yield
    finally:
        service.over.set()
        server.should_exit = True
        thread.join(3 * FINISH_S)


def _listen(options: ApiOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.bind else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.bind, options.port))
    except OSError as error:
        listener.close()
        raise RunError(
            f"the API cannot listen at {options.bind}:{options.port} ({error.strerror}). Set TEMPERA_API_PORT to a "
            "free port, or leave it out."
        ) from error
    return listener
