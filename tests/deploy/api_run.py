"""A real run in this process with its API, and sockets for requests that no HTTP library sends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deploy.api.client import RunClient
from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig, RunConfig
from deploy.runs.overrides import override
from deploy.runs.recipes import debug
from deploy.runs.rundir import RunDir
from tests.runs import wait_for

WINDOW_STEPS = 4
TINY = (
    "train.model.width=48",
    "train.model.depth=1",
    "train.model.heads=3",
    "train.model.decoder_depth=1",
    "train.global_batch=16",
    "train.checkpoint_every=0",
    "train.log_every=1",
    "pictures=false",
    f"train.window_steps={WINDOW_STEPS}",
)


def tiny(data: DataConfig, *, steps: int, settings: tuple[str, ...] = ()) -> RunConfig:
    return override(debug(data), (*TINY, f"train.total_steps={steps}", *settings))


@contextmanager
def alive(folder: Path, config: RunConfig) -> Iterator[RunDir]:
    """The run trains in a thread until the block ends."""
    run, failures = RunDir(folder), []

    def train() -> None:
        try:
            launch_in_process(config, run)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=train, name="trainer")
    thread.start()
    wait_for(lambda: run.api_url() or failures, "the API")
    try:
        yield run
    finally:
        run.stop_request.touch()
        run.pause_request.unlink(missing_ok=True)
        thread.join(240)
    assert not failures, failures


@contextmanager
def paused(run: RunDir) -> Iterator[None]:
    """Pause a run for the block, and see that it takes steps again afterwards."""
    with RunClient.attach(run) as client:
        client.post("pause", author="test")
        wait_for(lambda: client.state()["paused"], "the pause")
    yield
    with RunClient.attach(run) as client:
        before = client.state()["progress"]["step"]
        client.post("resume", author="test")
        wait_for(lambda: client.state()["progress"]["step"] > before, "a step after the pause")


@dataclass(frozen=True)
class Reply:
    status: int
    head: str
    body: bytes


class Raw:
    """Requests as no library would send them."""

    def __init__(self, client: RunClient) -> None:
        parts = urlsplit(client.url)
        self.address = parts.hostname or "", parts.port or 80

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)

    def send(self, *parts: bytes) -> Reply:
        """Send bytes, and read until the server closes or the body is whole."""
        with closing(self.connect()) as peer:
            try:
                for part in parts:
                    peer.sendall(part)
            except OSError:
                pass  # refused while sending; the answer is there to be read
            return read_reply(peer)


def read_reply(peer: socket.socket) -> Reply:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = peer.recv(65536)
        assert piece, f"closed without an answer: {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    text = head.decode("latin-1").lower()
    length = next((int(line.split(":")[1]) for line in text.splitlines() if line.startswith("content-length:")), 0)
    while len(body) < length:
        piece = peer.recv(65536)
        assert piece, "closed within the body"
        body += piece
    return Reply(status=int(text.split()[1]), head=text, body=body)
