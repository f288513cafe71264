"""A shard server on loopback that misbehaves on demand: errors, hangs, resets, trickles, short and wrong answers."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

HANG_S = 20.0
TRICKLE_BYTES, TRICKLE_S = 256, 0.25


class ShardServer:
    """Serves the tars of a folder by ranges; `misbehaviour` names what it does wrong, or is empty."""

    def __init__(self, folder: Path) -> None:
        """Bind a free port; the server answers within its `with` block.

        Args:
            folder: its files are served, and nothing else.
        """
        self.folder = folder
        self.misbehaviour = ""
        self.done: Counter[str] = Counter()
        """How often each misbehaviour met a request."""
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="shard-server", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Five, the default, lose some connections of loaders that come at once; the kernel tries again after a second."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up on a storage that misbehaves are right."""


def _handler(owner: ShardServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = owner.folder / Path(self.path).name
            if not path.is_file():
                return self.send_error(404)
            data = path.read_bytes()
            first, last = _range(self.headers.get("Range"), len(data))
            etag = f'"{path.stat().st_mtime_ns:x}"'
            misbehaviour = owner.misbehaviour
            if misbehaviour:
                owner.done[misbehaviour] += 1
            MISBEHAVIOURS.get(misbehaviour, _answer)(self, data[first : last + 1], (first, len(data)), etag)
            return None

        def do_HEAD(self) -> None:
            path = owner.folder / Path(self.path).name
            if not path.is_file():
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
            self.end_headers()
            return None

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


Answer = Callable[[BaseHTTPRequestHandler, bytes, tuple[int, int], str], None]
"""(handler, the bytes asked for, (first byte, length of the file), ETag) -> the answer is sent."""


def _head(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    first, length = place
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{length}")
    handler.send_header("Content-Length", str(len(part)))
    handler.send_header("ETag", etag)
    handler.end_headers()


def _answer(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    _head(handler, part, place, etag)
    handler.wfile.write(part)


def _error(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    handler.send_error(503)


def _hang(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    time.sleep(HANG_S)
    handler.close_connection = True


def _reset(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
    handler.connection.close()
    handler.close_connection = True


def _trickle(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    _head(handler, part, place, etag)
    for start in range(0, len(part), TRICKLE_BYTES):
        handler.wfile.write(part[start : start + TRICKLE_BYTES])
        handler.wfile.flush()
        time.sleep(TRICKLE_S)


def _short(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    _head(handler, part, place, etag)
    handler.wfile.write(part[: len(part) // 2])
    handler.close_connection = True


def _wrong_range(handler: BaseHTTPRequestHandler, part: bytes, place: tuple[int, int], etag: str) -> None:
    _answer(handler, bytes(len(part)), (place[0] + 512, place[1]), etag)


MISBEHAVIOURS: dict[str, Answer] = {
    "error": _error,
    "hang": _hang,
    "reset": _reset,
    "trickle": _trickle,
    "short": _short,
    "wrong_range": _wrong_range,
}


def _range(header: str | None, length: int) -> tuple[int, int]:
    """(first, last) byte of a Range header, or of the whole file."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)?", header or "")
    if match is None:
        return 0, length - 1
    return int(match[1]), min(int(match[2] or length - 1), length - 1)
