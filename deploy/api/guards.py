"""What every request passes before any of our code looks at it, in this order, cheapest first.

1. method: GET reads, POST changes; there is no other, and no leave for other origins to ask.
2. Host: a name that we answer to, so that no foreign name can be bound to this machine (DNS rebinding).
3. Origin and Sec-Fetch-Site: what a browser sends from another site is refused.
4. token: for everything but the page itself.
5. rate and requests in work: a flood is turned away before it costs the trainer in this process much.
6. body: JSON, of at most BODY_BYTES whatever its head claims, here within BODY_TIMEOUT_S, read before it is looked at.

Refusals are one line of JSON. Nothing of a request is logged.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from deploy.api.options import (
    BODY_BYTES,
    BODY_TIMEOUT_S,
    BURST,
    HEADER_BYTES,
    RATE,
    REQUESTS_IN_WORK,
    ApiOptions,
)
from deploy.api.token import TokenFile

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/openapi.json", "/healthz")
ASSETS = "/assets/"
STREAM_PATH = "/api/v1/stream"
"""Readers of the stream stay; they are counted where it is made."""
DRAINED_BYTES, DRAIN_S = 2**20, 1.0
"""Of a body that is refused, so much is still taken, so that its sender comes to read the answer."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
NOT_KEPT = (b"cache-control", b"no-store")


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Guard:
    """The rules, around an application."""

    def __init__(self, app: App, *, options: ApiOptions, token: TokenFile) -> None:
        self._app, self._hosts, self._token = app, options.hosts, token
        self._bucket = Bucket(RATE, BURST)
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        assert scope["type"] == "http", "no websockets, no lifespan"
        guarded = _Reply(send, scope)
        heads = _Heads(scope)
        try:
            self._check(scope, heads)
            body = await _body(scope, heads, receive)
        except Refused as refused:
            await _refuse(refused, guarded, receive)
            return
        if body is None:
            return
        counted = scope["path"] != STREAM_PATH
        self._working += counted
        try:
            await self._app(scope, _replay(body, receive), guarded)
        finally:
            self._working -= counted

    def _check(self, scope: Scope, heads: _Heads) -> None:
        if heads.num_bytes > HEADER_BYTES:  # the parser bounds only what comes in pieces
            raise Refused(431, f"the head of a request must be at most {HEADER_BYTES} bytes.")
        if scope["method"] not in ("GET", "POST"):
            raise Refused(405, f"the API reads with GET and changes with POST; got {scope['method'][:16]}.")
        host = heads.one(b"host")
        if host is None or _name(host) not in self._hosts:
            raise Refused(
                403, "Host must be this machine's loopback, or a name in TEMPERA_API_HOSTS; the request names another."
            )
        _check_site(heads, host, scope["path"])
        if scope["path"] not in OPEN_PATHS and not scope["path"].startswith(ASSETS):
            kind, _, candidate = (heads.one(b"authorization") or b"").partition(b" ")
            if kind.lower() != b"bearer" or not self._token.matches(candidate.strip()):
                raise Refused(
                    401,
                    "the header `Authorization: Bearer TOKEN` must bear the run's token; it is in the file api-token "
                    "of the run directory.",
                    (b"www-authenticate", b"Bearer"),
                )
        if not self._bucket.take() or self._working >= REQUESTS_IN_WORK:
            raise Refused(429, "too many requests at once; ask again in a second.", (b"retry-after", b"1"))


class Bucket:
    """So many requests a second in the long run, and a burst of some more."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at_s = burst, clock()

    def take(self) -> bool:
        """Whether one more may pass."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at_s) * self._rate)
        self._at_s = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class _Heads:
    """A request's headers by name."""

    def __init__(self, scope: Scope) -> None:
        self._all: list[tuple[bytes, bytes]] = scope["headers"]

    @property
    def num_bytes(self) -> int:
        """What they take, with the colon, the blank and the end of each line."""
        return sum(len(name) + len(value) + 4 for name, value in self._all)

    def one(self, name: bytes) -> bytes | None:
        """Its value; None where it is missing.

        Raises:
            Refused: it is there twice.
        """
        values = [value for key, value in self._all if key == name]
        if len(values) > 1:
            raise Refused(400, f"the header {name.decode()} must be there once; got {len(values)}.")
        return values[0].strip() if values else None


def _name(host: bytes) -> str:
    """The host's name without its port."""
    text = host.decode("latin-1").lower()
    name, colon, port = text.rpartition(":")
    return name if colon and port.isdigit() else text


def _check_site(heads: _Heads, host: bytes, path: str) -> None:
    """Refuse what a page of another site makes a browser send; a person may follow a link to our page."""
    origin = heads.one(b"origin")
    if origin is not None:
        parts = urlsplit(origin.decode("latin-1"))
        if parts.scheme not in ("http", "https") or parts.netloc.lower().encode("latin-1") != host.lower():
            raise Refused(403, "Origin must be the address that the request is sent to; it comes from another site.")
    followed = path == "/" and heads.one(b"sec-fetch-mode") == b"navigate"
    if heads.one(b"sec-fetch-site") not in (None, b"same-origin", b"none") and not followed:
        raise Refused(403, "requests from other sites are refused.")


async def _body(scope: Scope, heads: _Heads, receive: Receive) -> bytes | None:
    """The whole body; refused without reading it where its head tells; None where the peer is gone before its end."""
    if heads.one(b"transfer-encoding") is not None and heads.one(b"content-length") is not None:
        # Two lengths: whoever stands in between may take the other, and see another request behind this one.
        raise Refused(400, "a body must have a length or come in chunks, not both.", (b"connection", b"close"))
    length = heads.one(b"content-length") or b"0"
    if not length.isdigit() or len(length) > 18 or int(length) > BODY_BYTES:
        raise _too_large()
    if scope["method"] == "POST":
        kind = (heads.one(b"content-type") or b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refused(415, "Content-Type must be application/json.")
    elif int(length) == 0 and heads.one(b"transfer-encoding") is None:
        return b""
    parts, size = [], 0
    deadline = time.monotonic() + BODY_TIMEOUT_S
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise Refused(408, f"the body must be here within {BODY_TIMEOUT_S:.0f} s.") from None
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large() -> Refused:
    return Refused(413, f"the body must be at most {BODY_BYTES} bytes.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A source that gives the body, and then whatever comes after it: that the peer has gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class _Reply:
    """Sends with our headers on every answer."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self._extra = [*HEADERS] if scope["path"].startswith(ASSETS) else [*HEADERS, NOT_KEPT]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name for name, _ in given}
            message["headers"] = given + [header for header in self._extra if header[0] not in names]
        await self._send(message)


async def _refuse(refused: Refused, send: Send, receive: Receive) -> None:
    """Say why, take what is still under way of a body, and close."""
    body = json.dumps({"error": refused.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *refused.headers]
    unread = refused.status in (408, 413, 415)
    if unread:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": unread})
    if unread:
        await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    """Take a little of what is being sent: a connection closed over unread bytes loses the answer."""
    left, deadline = DRAINED_BYTES, time.monotonic() + DRAIN_S
    while left > 0 and time.monotonic() < deadline:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))
