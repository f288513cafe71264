"""HTTP requests as no library would send them: heads that smuggle, bodies that lie, names that are not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

TOKEN = b"TOKEN"
"""Stands for the run's token; whoever sends a request puts it in."""
LINES = (b"Host: localhost", b"Authorization: Bearer " + TOKEN, b"Content-Type: application/json")

PATHS = rb"""
/api/v1/../../etc/passwd /assets/../client.py /assets/%2e%2e/%2e%2e/client.py /assets/..%2f..%2fapi-token
/assets/....//....//api-token /assets/\..\api-token /assets/%00 //evil.example/x /api/v1/samples/%2e%2e
/api/v1/samples/0x10 /api/v1/samples/99999999999999999999999 /api/v1/samples/-1/image
/api/v1/samples/1/image?side=1000000000 /api/v1/log?limit=99999999999999999999
/api/v1/distribution?bins=2000000000 /api/v1/metrics?points=1e308 /api/v1/samples/top?k=%00
/api/v1/solve?effective_size=nan /docs
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Bytes for the API, and the statuses that may come back."""

    name: str
    data: bytes
    status: tuple[int, ...]


def post(body: bytes, *lines: bytes, path: bytes = b"/api/v1/controls", length: int | None = None) -> bytes:
    """A request to change something, with these lines more in its head."""
    size = b"Content-Length: %d" % (len(body) if length is None else length)
    return b"\r\n".join((b"POST " + path + b" HTTP/1.1", *LINES, size, *lines, b"", body))


def head(first: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


def control(**changes: object) -> bytes:
    return json.dumps({"kind": "release", "author": "ann", **changes}).encode()


def cases() -> Iterator[Request]:
    for family in (_heads, _smuggled, _names, _bodies, _fields):
        for name, data, status in family():
            yield Request(name=name, data=data, status=status if isinstance(status, tuple) else (status,))


def _heads() -> Iterator[tuple[str, bytes, int | tuple[int, ...]]]:
    state = b"GET /api/v1/state HTTP/1.1"
    for method in (b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"PROPFIND", b"get"):
        yield method.decode(), head(method + b" /api/v1/state HTTP/1.1", *LINES), (400, 405)
    yield "no host", head(state, *LINES[1:]), (400, 403)
    yield "two hosts", head(state, *LINES, b"Host: evil.example"), 400
    yield "no token", head(state, LINES[0]), 401
    yield "a token twice", head(state, *LINES, LINES[1]), 400
    yield "a token of 12,000 bytes", head(state, LINES[0], b"Authorization: Bearer " + b"x" * 12_000), 401
    yield "a token in the address", head(b"GET /api/v1/state?token=" + TOKEN + b" HTTP/1.1", LINES[0]), 401
    yield "version 0.9", b"GET /api/v1/state\r\n\r\n", 400
    yield "version 9", head(b"GET /api/v1/state HTTP/9.9", *LINES), (200, 400, 505)
    yield "a head of a megabyte", head(state, *LINES, b"X: " + b"x" * 2**20), (400, 431)
    yield "ten thousand lines", head(state, *LINES, *[b"X%d: y" % n for n in range(10_000)]), (400, 431)
    yield "a folded line", head(state, *LINES, b"X: a\r\n b"), (200, 400)
    yield "a zero byte in a line", head(state, *LINES, b"X: a\0b"), 400
    yield "a blank before the colon", head(state, LINES[0], b"Authorization : Bearer " + TOKEN), 400
    yield "line feeds only", head(state, *LINES).replace(b"\r\n", b"\n"), (200, 400)
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30), (400, 405, 505)
    yield "a socket instead", head(state, *LINES, b"Upgrade: websocket", b"Connection: Upgrade"), (200, 400, 426)


def _smuggled() -> Iterator[tuple[str, bytes, int | tuple[int, ...]]]:
    hidden = post(control(author="smuggler"))
    yield "two lengths", post(control(), b"Content-Length: 0"), 400
    yield "lengths in one line", post(b"", b"Content-Length: 5, 6"), 400
    yield "a length and chunks", post(b"0\r\n\r\n" + hidden, b"Transfer-Encoding: chunked", length=5), (400, 422)
    yield "chunks that are none", post(b"zz\r\n{}\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"), 400
    yield "coding xchunked", post(b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: xchunked"), (400, 411, 501)
    yield "coding twice", post(b"0\r\n\r\n", b"Transfer-Encoding: identity, chunked"), (400, 422, 501)
    yield "a negative length", post(b"{}", length=-1), 400
    yield "a length with a sign", post(b"{}", length=2).replace(b"Length: 2", b"Length: +2"), 400
    yield "a length of 2^70", post(b"{}", length=2**70), (400, 413)
    yield "a length of a gigabyte", post(b"{}", length=2**30), 413
    yield "a body of 64 KB and one byte", post(b" " * 65_537), 413
    yield "a method by another name", post(control(), b"X-HTTP-Method-Override: GET", path=b"/api/v1/state"), 405
    yield "a path by another name", head(b"GET / HTTP/1.1", LINES[0], b"X-Original-URL: /api/v1/state"), 200


def _names() -> Iterator[tuple[str, bytes, int | tuple[int, ...]]]:
    state = b"GET /api/v1/state HTTP/1.1"
    for host in b"evil.example localhost.evil.example 127.0.0.1.evil.example evil.example:80 2130706433".split():
        yield f"host {host.decode()}", head(state, b"Host: " + host, *LINES[1:]), 403
    for host in (b"localhost@evil.example", b"localhost/evil", b"", b"[::1", b"localhost:80:80", b"0"):
        yield f"host {host.decode()!r}", head(state, b"Host: " + host, *LINES[1:]), (400, 403)
    for origin in b"http://evil.example null file:// http://localhost:1 http://localhost.evil.example".split():
        yield f"origin {origin.decode()}", head(state, *LINES, b"Origin: " + origin), 403
    for site in (b"cross-site", b"same-site", b"evil"):
        yield f"site {site.decode()}", head(state, *LINES, b"Sec-Fetch-Site: " + site), 403
    for path in (*PATHS.split(), b"/api/v1/" + b"a" * 9000):
        yield f"path {path.decode()[:60]}", head(b"GET " + path + b" HTTP/1.1", *LINES), (400, 404, 422)


def _bodies() -> Iterator[tuple[str, bytes, int | tuple[int, ...]]]:
    refused = (400, 422)
    for name, body in (
        ("nothing", b""),
        ("no JSON", b"{"),
        ("not UTF-8", b"\xff\xfe"),
        ("UTF-16", '{"kind":"release"}'.encode("utf-16")),
        ("60,000 lists", b"[" * 60_000),
        ("12,000 objects", b'{"a":' * 12_000),
        ("a list", b"[]"),
        ("a number of 60,000 digits", b"9" * 60_000),
        ("1e999", b'{"kind":"effective_size","author":"ann","value":1e999}'),
        ("NaN", b'{"kind":"effective_size","author":"ann","value":NaN}'),
        ("half a letter", b'{"kind":"release","author":"\\ud800"}'),
        ("a zero byte", b'{"kind":"release","author":"a\\u0000b"}'),
        ("pickle", b"\x80\x04cposix\nsystem\n."),
        ("YAML", b"!!python/object/apply:os.system [id]"),
        ("XML", b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'),
    ):
        yield f"body: {name}", post(body), refused
    kind = b"application/json"
    form = b"application/x-www-form-urlencoded"
    for other in (b"text/plain", form, b"multipart/form-data; boundary=x", b"text/json"):
        yield f"body called {other.decode()}", post(control()).replace(kind, other), 415
    yield "body compressed", post(b"\x1f\x8b" + bytes(40), b"Content-Encoding: gzip"), refused


def _fields() -> Iterator[tuple[str, bytes, int | tuple[int, ...]]]:
    for name, body in (
        ("an unknown field", control(__class__="x")),
        ("a prototype", control(**{"__proto__": {"admin": True}})),
        ("a kind of code", control(kind="policy", value="os:system")),
        ("a policy of markup", control(kind="policy", value="<script>alert(1)</script>")),
        ("distances of a file", control(kind="distances", value="/etc/passwd")),
        ("a round", control(kind="round", value="pass")),
        ("a size of text", control(kind="effective_size", value="0.3")),
        ("a size of truth", control(kind="effective_size", value=True)),
        ("a size of 10^400", control(kind="effective_size", value=10**400)),
        ("a size too small", control(kind="effective_size", value=1e-300)),
        ("a temperature below all", control(kind="temperature", value=5e-324)),
        ("an author of lines", control(author="a\nb")),
        ("an author of escapes", control(author="\x1b[2J")),
        ("an author of 65", control(author="a" * 65)),
        ("the trainer", control(author="trainer")),
        ("a reason of 60,000", control(reason="r" * 60_000)),
        ("a version of 2^63", control(expected_version=2**63)),
        ("a version of text", control(expected_version="1")),
        ("a request of 65", control(request="r" * 65)),
    ):
        yield f"field: {name}", post(body), 422
    for loaders in (0, -1, 2.5, 10**9, "2", None):
        body = json.dumps({"loaders": loaders, "author": "ann"}).encode()
        yield f"loaders: {loaders!r}", post(body, path=b"/api/v1/scale"), 422
