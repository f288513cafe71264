"""The checks that every request passes before a route sees it, in this order, cheapest first.

1. Method: GET reads, POST changes; there is no other, and no CORS for other origins.
2. Host: a name of this server, so that no foreign name can be bound to this machine (DNS rebinding).
3. Origin and Sec-Fetch-Site: a request that a browser sends for another site is refused.
4. Token: for everything but the page itself.
5. Rate and requests in work: a flood is refused before it costs the trainer in this process much.
6. Body: JSON of at most BODY_BYTES, whatever its head claims, complete within BODY_TIMEOUT_S, read before it is parsed.

A refusal is one line of JSON. Nothing of a request is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

Headers = list[tuple[bytes, bytes]]

OPEN_PATHS = ("/", "/openapi.json", "/healthz")
ASSETS = "/assets/"
STREAM_PATH = "/api/v1/stream"
DRAINED_BYTES, DRAIN_S = 2**20, 1.0
"""Most bytes and seconds of a refused body that are still read, so that its sender comes to read the answer."""
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
NOT_CACHED = (b"cache-control", b"no-store")


class Refused(Exception):
    """A request that is refused, with the headers that its answer has besides."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Guard:
    """The checks, around an application."""

    def __init__(self, app: ASGIApp, *, options: ApiOptions, token: TokenFile) -> None:
        self._app, self._hosts, self._token = app, options.hosts, token
        self._bucket = Bucket(RATE, BURST)
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "no websockets, no lifespan"
        extra = HEADERS if scope["path"].startswith(ASSETS) else (*HEADERS, NOT_CACHED)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                # A route's own header wins: pictures may be cached.
                names = {name for name, _ in given}
                message["headers"] = given + [header for header in extra if header[0] not in names]
            await send(message)

        try:
            self._check(scope)
            body = await _body(scope, receive)
        except Refused as refused:
            await _refuse(refused, send_with_headers, receive)
            return
        # The peer has gone: drop the request.
        if body is None:
            return
        given = False

        async def replay() -> Message:
            # Once the body, and then what comes after it: that the peer has gone.
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        # Readers of the stream stay for hours; they must not use up REQUESTS_IN_WORK. `routes` counts them.
        counted = scope["path"] != STREAM_PATH
        self._working += counted
        try:
            await self._app(scope, replay, send_with_headers)
        finally:
            self._working -= counted

    def _check(self, scope: Scope) -> None:
        headers: Headers = scope["headers"]
        # The parser bounds only a head that comes in pieces. Four bytes: colon, space, end of the line.
        if sum(len(name) + len(value) + 4 for name, value in headers) > HEADER_BYTES:
            raise Refused(431, f"the head of a request must be at most {HEADER_BYTES} bytes.")
        if scope["method"] not in ("GET", "POST"):
            raise Refused(405, f"the API reads with GET and changes with POST; got {scope['method'][:16]}.")
        host = _header(headers, b"host")
        text = (host or b"").decode("latin-1").lower()
        # The port does not count: the near end of a forwarded port has another.
        name, colon, port = text.rpartition(":")
        if host is None or (name if colon and port.isdigit() else text) not in self._hosts:
            raise Refused(
                403, "Host must be this machine's loopback, or a name in TEMPERA_API_HOSTS; the request names another."
            )
        # A page of another site makes a browser send these headers.
        origin = _header(headers, b"origin")
        if origin is not None:
            parts = urlsplit(origin.decode("latin-1"))
            if parts.scheme not in ("http", "https") or parts.netloc.lower().encode("latin-1") != host.lower():
                raise Refused(403, "Origin must be the address that the request is sent to; got another site.")
        # A person may follow a link to our page; a script may not.
        followed = scope["path"] == "/" and _header(headers, b"sec-fetch-mode") == b"navigate"
        if _header(headers, b"sec-fetch-site") not in (None, b"same-origin", b"none") and not followed:
            raise Refused(403, "requests from other sites are refused.")
        if scope["path"] not in OPEN_PATHS and not scope["path"].startswith(ASSETS):
            kind, _, candidate = (_header(headers, b"authorization") or b"").partition(b" ")
            if kind.lower() != b"bearer" or not self._token.matches(candidate.strip()):
                raise Refused(
                    401,
                    "the header `Authorization: Bearer TOKEN` must hold the run's token; it is in the file api-token "
                    "of the run directory.",
                    (b"www-authenticate", b"Bearer"),
                )
        # Checked after the token: requests without it must not use up the owner's rate.
        if not self._bucket.take() or self._working >= REQUESTS_IN_WORK:
            raise Refused(429, "too many requests at once; try again in a second.", (b"retry-after", b"1"))


class Bucket:
    """Token bucket: `rate` requests a second in the long run, and `burst` at once."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at_s = burst, clock()

    def take(self) -> bool:
        """Take one request's share; False when there is none left."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at_s) * self._rate)
        self._at_s = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def _header(headers: Headers, name: bytes) -> bytes | None:
    """Return a header's value; None where it is missing.

    Raises:
        Refused: it is there twice, and a proxy may have read the other.
    """
    values = [value for key, value in headers if key == name]
    if len(values) > 1:
        raise Refused(400, f"the header {name.decode()} must be there once; got {len(values)}.")
    return values[0].strip() if values else None


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """Return the whole body, or None if the peer is gone before its end.

    Raises:
        Refused: it is too large, too late or no JSON; where its head says so, without reading it.
    """
    headers: Headers = scope["headers"]
    if _header(headers, b"transfer-encoding") is not None and _header(headers, b"content-length") is not None:
        # Request smuggling: a proxy may take the other length and see another request behind this one.
        raise Refused(400, "a body must have a length or come in chunks, not both.", (b"connection", b"close"))
    too_large = Refused(413, f"the body must be at most {BODY_BYTES} bytes.")
    length = _header(headers, b"content-length") or b"0"
    # The digits are counted first: int() of a very long text is slow.
    if not length.isdigit() or len(length) > 18 or int(length) > BODY_BYTES:
        raise too_large
    if scope["method"] == "POST":
        kind = (_header(headers, b"content-type") or b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refused(415, "Content-Type must be application/json.")
    elif int(length) == 0 and _header(headers, b"transfer-encoding") is None:
        return b""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while (message := await receive())["type"] == "http.request":
                body += message.get("body", b"")
                if len(body) > BODY_BYTES:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refused(408, f"the body must be here within {BODY_TIMEOUT_S:.0f} s.") from None
    return None


async def _refuse(refused: Refused, send: Send, receive: Receive) -> None:
    body = json.dumps({"error": refused.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *refused.headers]
    unread = refused.status in (408, 413, 415)
    if unread:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": unread})
    if not unread:
        return
    # A connection closed over unread bytes is reset, and the peer loses the answer: read a little of what comes.
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while left > 0 and (message := await receive()).get("more_body", False):
                left -= len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b"", "more_body": False})
