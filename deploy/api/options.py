"""Where the API listens, and its limits. Not part of a run's configuration: nothing here changes what a run does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Names of the server for a browser on this machine, or at the near end of a forwarded port."""
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - only if a person sets it
BODY_BYTES, HEADER_BYTES = 64 * 1024, 16 * 1024
"""Largest body and largest head of a request."""
HEADER_TIMEOUT_S = 10.0
"""A connection that has not sent a whole head by then, or is idle for as long, is closed."""
BODY_TIMEOUT_S = 10.0
"""Time for a whole body to arrive."""
SEND_TIMEOUT_S = 20.0
"""A reader that takes nothing for as long is cut off."""
CONNECTIONS = 256
"""Most open connections; one more closes the one that is idle longest."""
REQUESTS_IN_WORK = 32
"""Most requests in work; one more is refused with 429."""
STREAMS = 16
"""Most readers of the event stream."""
THREADS = 4
"""Threads that answer requests; few, so that a flood leaves the processor to a trainer in this process."""
RATE, BURST = 100.0, 300.0
"""Most requests a second in the long run, and at once. A page of thumbnails is about fifty."""
TOKEN_CHARACTERS = 16
"""Least length of a token that a person chooses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiOptions:
    """Where the API listens, and under which names it may be called."""

    port: int = 0
    """Port on this machine; 0 takes a free one."""
    bind: str = "127.0.0.1"
    """Address to listen at."""
    allow_hosts: tuple[str, ...] = ()
    """Names besides the loopback by which browsers reach the server, as that of a proxy before it."""
    token: str = ""
    """Token chosen by the user; empty makes a new one at each start of a run."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"TEMPERA_API_PORT must be in 0..65535; got {self.port}.")
        # A header holds ASCII, and a space ends the token in it.
        if self.token and (len(self.token) < TOKEN_CHARACTERS or not self.token.isascii() or " " in self.token):
            raise ValueError(
                f"TEMPERA_API_TOKEN must be {TOKEN_CHARACTERS} or more ASCII characters without spaces; got "
                f"{len(self.token)}. Leave it out to get a new one."
            )

    @property
    def hosts(self) -> frozenset[str]:
        """Every name that the server answers to, without the port."""
        return LOOPBACK_NAMES | {name.lower() for name in (*self.allow_hosts, self.own_name)}

    @property
    def own_name(self) -> str:
        """Name of the bound address on this machine; an address that means all of them includes the loopback."""
        if self.bind in EVERY_ADDRESS:
            return "127.0.0.1"
        return f"[{self.bind}]" if ":" in self.bind else self.bind

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> ApiOptions:
        """Return the options in TEMPERA_API_PORT, _BIND, _HOSTS (names separated by commas) and _TOKEN.

        Raises:
            ValueError: naming the variable that is wrong.
        """
        port = environment.get("TEMPERA_API_PORT", "0")
        if not port.isdigit():
            raise ValueError(f"TEMPERA_API_PORT must be a number; got {port!r}.")
        names = environment.get("TEMPERA_API_HOSTS", "").split(",")
        return ApiOptions(
            port=int(port),
            bind=environment.get("TEMPERA_API_BIND", "127.0.0.1"),
            allow_hosts=tuple(name.strip() for name in names if name.strip()),
            token=environment.get("TEMPERA_API_TOKEN", ""),
        )
