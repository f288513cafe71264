"""Serves the API on a thread of this process for as long as a `with` block lasts.

1. Bind the port, so that a taken one is a clear error before anything else starts.
2. Write the token, serve, and write the address into the run directory.
3. At the end stop reading, let answers finish for a moment, remove the address and the token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.api.app import build_app
from deploy.api.backend import RunBackend
from deploy.api.options import CONNECTIONS, HEADER_BYTES, HEADER_TIMEOUT_S, SEND_TIMEOUT_S, ApiOptions
from deploy.api.service import RunService
from deploy.api.token import TokenFile, write_token
from deploy.observe.periodic import periodic
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir, RunError, write_json

log = logging.getLogger(__name__)

Exporter = Callable[[Callable[[], dict[str, Any]]], AbstractContextManager[object]]
START_TIMEOUT_S = 20.0
FOLLOW_S = 0.1
"""Seconds between two readings of what the trainer consumed."""
FINISH_S = 2
"""Seconds that answers in work may take when the run ends."""


@contextmanager
def serving(
    config: RunConfig,
    run: RunDir,
    backend: RunBackend,
    *,
    options: ApiOptions | None = None,
    token_path: Path | None = None,
    exporter: Exporter | None = None,
) -> Iterator[str]:
    """Serve a run, and yield the server's address, as http://127.0.0.1:PORT.

    The options are the environment's by default. With a `token_path` the run directory gets neither the token nor an
    address. The `exporter` is given a function that returns the run's state, and entered while the run is served.

    Raises:
        RunError: the port is taken.
    """
    options = options or ApiOptions.from_environment()
    announced = token_path is None
    path = token_path or run.api_token
    listener = _listen(options)
    url = f"http://{options.own_name}:{listener.getsockname()[1]}"
    # Before api.json names the address: its reader needs the token at once.
    write_token(path, options.token)
    try:
        service = RunService(config, run, backend)
        measuring = periodic(
            lambda: service.latency.record(service.consumption, backend.selection.record),
            every_s=FOLLOW_S,
            name="control-latency",
            trouble="control latency was not measured for a moment",
            join_s=10 * FOLLOW_S,
        )
        with (
            closing(service.samples),
            nullcontext() if backend.read_only else measuring,
            _thread(service, options, path, listener),
            exporter(service.state) if exporter else nullcontext(),
        ):
            # A finished run may be resumed meanwhile: api.json is then the other process's.
            if announced:
                write_json(run.api, {"url": url, "pid": os.getpid()})
            log.info("API at %s", url)
            yield url
    finally:
        listener.close()
        # `tempera dashboard --open` has written the token into open.html too.
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
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,  # strangers must not fill the log; our own has what matters
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=FINISH_S,
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), name="api", daemon=True)
    thread.start()
    # uvicorn has no event for its start; it sets a flag.
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
        # uvicorn takes FINISH_S for the answers in work; a thread that is stuck ends with the process.
        thread.join(3 * FINISH_S)


def _listen(options: ApiOptions) -> socket.socket:
    if options.bind not in ("127.0.0.1", "::1", "localhost"):
        log.warning("the API listens at %s, beyond this machine, and does not encrypt", options.bind)
    family = socket.AF_INET6 if ":" in options.bind else socket.AF_INET
    try:
        # It sets SO_REUSEADDR: a run that is resumed at once finds its port still in TIME_WAIT. "::" is IPv4 as well.
        return socket.create_server((options.bind, options.port), family=family, dualstack_ipv6=":" in options.bind)
    except OSError as error:
        raise RunError(
            f"the API cannot listen at {options.bind}:{options.port} ({error.strerror}). Set TEMPERA_API_PORT to a "
            "free port, or leave it out."
        ) from error


class BoundedProtocol(H11Protocol):
    """One connection of uvicorn, with three rules: it would wait for a silent peer forever.

    A connection without a request in work for HEADER_TIMEOUT_S is closed, and one whose peer reads nothing of an answer
    for SEND_TIMEOUT_S; of more than CONNECTIONS the one that has been idle longest is closed. So neither silent nor
    slow peers use up the process's descriptors, which a trainer in it needs too.
    """

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()
        if len(self.connections) > CONNECTIONS:
            others = cast("set[BoundedProtocol]", self.connections) - {self}
            # If all others are at work, close the newest.
            idle = [other for other in others if not other.is_working]
            victim = min(idle, key=lambda other: other._idle_since_s) if idle else self
            victim.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # A timer left behind keeps this connection in memory until it fires.
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        # The peer does not read as fast as we write.
        super().pause_writing()
        self._unread = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_request()

    @property
    def is_working(self) -> bool:
        """Whether a request has come and is not answered yet."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _wait_for_request(self) -> None:
        # Anew after each answer: a connection that is kept alive must send its next head in time.
        self._idle_since_s = self.loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.is_working and not self.transport.is_closing():
            self.transport.abort()
