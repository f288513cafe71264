"""Connections to storage servers: only to checked addresses, kept open between reads, shared by the reading threads."""

from __future__ import annotations

import functools
import http.client
import os
import socket
import ssl
import threading
from typing import Final, Self
from urllib.parse import SplitResult

from loader.storage.addresses import check_form, checked_addresses

TIMEOUT_S: Final = 10.0
"""Longest wait for a connection, or for the next bytes on one."""
_MAX_IDLE: Final = 64
"""Idle connections kept open to one host; further ones are closed after use."""

Target = tuple[str, str]
"""Scheme, and host with port: a connection serves URLs with the same two."""


class Connection(http.client.HTTPConnection):
    """A connection to one of the addresses that were checked; the host is not looked up again.

    With https the certificate must be valid for the host in the URL.
    """

    def __init__(self, parts: SplitResult, addresses: list[tuple[str, int]]) -> None:
        super().__init__(parts.hostname or "", addresses[0][1], timeout=TIMEOUT_S)
        # The Host header names the port unless it is this one; signatures cover that header.
        self.default_port = 443 if parts.scheme == "https" else 80
        self.target: Target = (parts.scheme, parts.netloc)
        self.used = False
        """True once it has answered a request. Its server may have closed it since."""
        self._addresses = addresses

    def connect(self) -> None:
        """Connect to the first address that answers."""
        for number, address in enumerate(self._addresses, start=1):
            try:
                self.sock = socket.create_connection(address, TIMEOUT_S)
                break
            except OSError:
                if number == len(self._addresses):
                    raise
        # http.client's own connect sets this too: without it the kernel holds back small requests.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.target[0] == "https":
            context = _tls_context(os.environ.get("SSL_CERT_FILE"))
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


class Connections:
    """The idle connections of one reader. Thread-safe.

    Hosts in `allow_hosts` may have private addresses, and may be reached by plain http.
    """

    def __init__(self, *, allow_hosts: tuple[str, ...] = ()) -> None:
        self.allow_hosts = allow_hosts
        self._idle: dict[Target, list[Connection]] = {}
        self._trusting: dict[str, Connections] = {}
        self._lock = threading.Lock()

    def trusting(self, host: str) -> Connections:
        """Return connections that may go to one more host: the endpoint that the environment names."""
        with self._lock:
            return self._trusting.setdefault(host, Connections(allow_hosts=(host, *self.allow_hosts)))

    def take(self, url: str, *, fresh: bool = False) -> Connection:
        """Return a connection for a URL, an idle one if possible. The caller returns it with `give`, or closes it.

        With `fresh` it is new, and the idle ones to that host are closed.

        Raises:
            ValueError: If the URL or an address of its host is refused.
            StorageUnavailable: If the host does not resolve.
        """
        parts = check_form(url, allow_hosts=self.allow_hosts)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"redirects must go to https; got {url[:100]!r}")
        with self._lock:
            idle = self._idle.get((parts.scheme, parts.netloc), [])
            if idle and not fresh:
                return idle.pop()
            # One closed connection means that the server has probably closed the others to it as well.
            stale, idle[:] = list(idle), []
        for connection in stale:
            connection.close()
        addresses = checked_addresses(parts, allow_hosts=self.allow_hosts)
        return Connection(parts, addresses)

    def give(self, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end for the next request."""
        connection.used = True
        with self._lock:
            idle = self._idle.setdefault(connection.target, [])
            if len(idle) < _MAX_IDLE:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, {}
            trusting, self._trusting = self._trusting, {}
        # Without the lock: closing may wait for the network.
        for further in trusting.values():
            further.close()
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@functools.cache
def _tls_context(certificates: str | None) -> ssl.SSLContext:
    """Return the TLS settings for a file of trusted authorities; None takes the system's."""
    return ssl.create_default_context(cafile=certificates)
