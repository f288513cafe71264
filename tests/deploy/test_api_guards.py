"""Requests that are not allowed or not possible get one clear line, and the run continues."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deploy.api.client import RunClient
from deploy.api.guards import Bucket
from deploy.api.options import BODY_BYTES, CONNECTIONS, ApiOptions
from deploy.cli import main
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir
from tests.deploy.api_run import Raw, alive, paused, read_reply, tiny
from tests.runs import wait_for

AUTHOR = {"author": "ann"}
READS = (
    "state", "metrics", "curve", "distribution", "solve?effective_size=0.3", "summary", "samples/top", "samples/3",
    "samples/3/image", "scores", "loaders", "log", "bad-samples",
)  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "controls": {"kind": "release", **AUTHOR},
    "scale": {"loaders": 2, **AUTHOR},
    "pause": AUTHOR,
    "resume": AUTHOR,
    "export": AUTHOR,
    "stop": AUTHOR,
}
ESTABLISHED = "01"
OTHER_METHODS = ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: DataConfig) -> Iterator[RunDir]:
    """A run that is paused while the tests send their requests, which is quicker, and continues afterwards."""
    with alive(tmp_path_factory.mktemp("guards") / "run", tiny(digits, steps=10**6)) as run, paused(run):
        yield run


@pytest.fixture
def http(client: RunClient, run: RunDir) -> Iterator[httpx2.Client]:
    bearer = {"authorization": f"Bearer {run.api_token.read_text()}"}
    with httpx2.Client(base_url=f"{client.url}/api/v1/", headers=bearer, trust_env=False, verify=False) as http:
        yield http


@pytest.fixture
def stranger(client: RunClient) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"{client.url}/api/v1/", trust_env=False, verify=False) as http:
        yield http


def ask(http: httpx2.Client, path: str, **how: Any) -> httpx2.Response:
    """GET, or POST what the path takes; a burst of tests may come too fast and is sent again."""
    while True:
        answer = http.post(path, json=CHANGES[path], **how) if path in CHANGES else http.get(path, **how)
        if answer.status_code != 429:
            return answer
        time.sleep(0.3)


def refused(answer: httpx2.Response, status: int, words: str = "") -> None:
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]
    assert "\n" not in message
    assert words in message


@pytest.mark.parametrize("path", [*READS, *CHANGES, "stream", "nowhere"])
def test_no_method_answers_without_the_token_or_to_another_site(
    http: httpx2.Client, stranger: httpx2.Client, path: str
) -> None:
    """Every path with no, a wrong, a misplaced token, and from a foreign page or name: refused, and nothing changed."""
    before = http.get("log", params={"changes": True}).json()["entries"]
    token = http.headers["authorization"].partition(" ")[2]
    for wrong in ({}, {"authorization": "Bearer " + "x" * 43}, {"authorization": f"Basic {token}"}, {"cookie": token}):
        refused(ask(stranger, path, headers=wrong), 401, "api-token")
        refused(ask(stranger, path, headers=wrong, params={"token": token}), 401)
    refused(ask(http, path, headers={"host": "evil.example"}), 403, "Host")
    refused(ask(http, path, headers={"host": "localhost.evil.example:80"}), 403, "Host")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "file://"):
        refused(ask(http, path, headers={"origin": origin}), 403, "Origin")
    refused(ask(http, path, headers={"sec-fetch-site": "cross-site"}), 403, "other sites")
    refused(ask(http, path, headers={"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"}), 403)
    assert http.get("log", params={"changes": True}).json()["entries"] == before


@pytest.mark.parametrize("path", [*READS, *CHANGES])
def test_every_other_method_is_refused(http: httpx2.Client, path: str) -> None:
    for method in OTHER_METHODS:
        answer = http.request(method, path)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers
    wrong_way = http.get(path) if path in CHANGES else http.post(path, json={})
    refused(wrong_way, 405)


def test_a_forwarded_port_and_an_allowed_name_are_welcome(http: httpx2.Client) -> None:
    for host in ("localhost:8123", "127.0.0.1:1", "[::1]:99", "LOCALHOST"):
        same = {"host": host, "origin": f"http://{host.lower()}", "sec-fetch-site": "same-origin"}
        assert ask(http, "state", headers=same).status_code == 200
    assert "dash.example" in ApiOptions(allow_hosts=("Dash.example",)).hosts


def test_the_page_needs_no_token_and_a_person_may_follow_a_link_to_it(
    stranger: httpx2.Client, client: RunClient
) -> None:
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    page = stranger.get(f"{client.url}/", headers=linked)
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert stranger.get(f"{client.url}/healthz").json() == {"ok": True}
    for outside in ("/assets/%2e%2e/%2e%2e/client.py", "/assets/..%2f..%2fclient.py", "//etc/passwd"):
        assert Raw(client).send(f"GET {outside} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).status in (401, 404)
    schema = stranger.get(f"{client.url}/openapi.json").json()
    assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_the_description_has_every_route_and_a_schema_of_every_answer(
    stranger: httpx2.Client, client: RunClient
) -> None:
    """Each GET's answer is described field by field; no change takes an unknown field; nothing is left out here."""
    schema = stranger.get(f"{client.url}/openapi.json").json()
    asked = {re.sub(r"samples/\d+", "samples/{sample_id}", path.partition("?")[0]) for path in (*READS, *CHANGES)}
    assert schema["paths"].keys() == {f"/api/v1/{path}" for path in (*asked, "stream")} | {"/metrics"}
    models = schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        assert set(methods) == ({"post"} if path.removeprefix("/api/v1/") in CHANGES else {"get"}), path
        (operation,) = methods.values()
        for kind, content in operation["responses"]["200"]["content"].items():
            if kind == "application/json":
                fields = models[content["schema"]["$ref"].rpartition("/")[2]]["properties"]
                assert all(field.get("description") for field in fields.values()), path
            else:
                assert content["schema"]["type"] == "string", path
    requests = [models[name] for name in models if name.endswith("Request")]
    assert len(requests) == 3
    assert all(request["additionalProperties"] is False for request in requests)
    refused(stranger.get(f"{client.url}/metrics"), 401)


@pytest.mark.parametrize("path", [path for path in READS if "image" not in path])
def test_an_answer_has_the_fields_that_the_description_has(http: httpx2.Client, path: str) -> None:
    schema = http.get(http.base_url.join("/openapi.json")).json()
    route = schema["paths"]["/api/v1/" + re.sub(r"samples/\d+", "samples/{sample_id}", path.partition("?")[0])]["get"]
    described = route["responses"]["200"]["content"]["application/json"]["schema"]
    assert list(undescribed(ask(http, path).json(), described, schema)) == []


def undescribed(value: Any, described: dict[str, Any], schema: dict[str, Any], place: str = "") -> Iterator[str]:
    """Names of the fields that an object, or one within it, has beyond its description."""
    if "$ref" in described:
        described = schema["components"]["schemas"][described["$ref"].rpartition("/")[2]]
    if isinstance(value, list) and isinstance(described.get("items"), dict):
        for item in value:
            yield from undescribed(item, described["items"], schema, f"{place}[]")
    for name, item in value.items() if isinstance(value, dict) and "properties" in described else ():
        if name in described["properties"]:
            yield from undescribed(item, described["properties"][name], schema, f"{place}.{name}")
        else:
            yield f"{place}.{name}"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("controls", {"kind": "release", **AUTHOR, "vlaue": 1}, 422, "vlaue"),
        ("controls", {"kind": "release"}, 422, "author"),
        ("controls", {"kind": "round", "value": "pass", **AUTHOR}, 422, "kind"),
        ("controls", {"kind": "effective_size", "value": 0.9, **AUTHOR}, 422, "0.632"),
        ("controls", {"kind": "effective_size", "value": True, **AUTHOR}, 422, "value"),
        ("controls", {"kind": "effective_size", "value": "0.3", **AUTHOR}, 422, "must be a number"),
        ("controls", {"kind": "effective_size", "value": [0.3], **AUTHOR}, 422, "value"),
        ("controls", {"kind": "effective_size", "value": 10**400, **AUTHOR}, 422, "value"),
        ("controls", {"kind": "policy", "value": "protypical", **AUTHOR}, 422, "prototypical"),
        ("controls", {"kind": "policy", "value": "os:system", **AUTHOR}, 422, ""),
        ("controls", {"kind": "release", "author": "trainer"}, 422, "author"),
        ("controls", {"kind": "release", "author": "a\nb"}, 422, "author"),
        ("controls", {"kind": "release", "author": "a" * 65}, 422, "author"),
        ("controls", {"kind": "release", **AUTHOR, "expected_version": "0"}, 422, "expected_version"),
        ("controls", {"kind": "release", **AUTHOR, "expected_version": -1}, 422, "expected_version"),
        ("controls", [], 422, ""),
        ("scale", {"loaders": 0, **AUTHOR}, 422, "loaders"),
        ("scale", {"loaders": 2.5, **AUTHOR}, 422, "loaders"),
        ("scale", {"loaders": 2, **AUTHOR}, 409, "under Ray"),
        ("pause", {"author": ""}, 422, "author"),
        ("stop", {**AUTHOR, "force": True}, 422, "force"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_field(
    http: httpx2.Client, path: str, body: Any, status: int, words: str
) -> None:
    version = http.get("state").json()["control"]["version"]
    refused(http.post(path, json=body), status, words)
    assert http.get("state").json()["control"]["version"] == version


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("samples/99999999", 404),
        ("samples/-1", 422),
        ("samples/3/image?side=100000", 422),
        ("samples/top?k=100000", 422),
        ("samples/top?by=key", 422),
        ("metrics?points=0", 422),
        ("metrics?since=x", 422),
        ("log?limit=100000", 422),
        ("distribution?bins=1000000", 422),
        ("solve", 422),
        ("solve?effective_size=nan", 422),
        ("solve?temperature=inf", 422),
        ("nowhere", 404),
    ],
)
def test_a_query_that_cannot_be_is_refused(http: httpx2.Client, path: str, status: int) -> None:
    refused(http.get(path), status)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"kind": "release", "author": NaN}',
        b'{"kind": "effective_size", "value": NaN, "author": "ann"}',
        b'{"kind": "effective_size", "value": Infinity, "author": "ann"}',
        b'{"kind": "release", "author": "\\ud800"}',
        b'{"kind": "release", "author": "ann", "expected_version": ' + b"9" * 5000 + b"}",
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b"null",
        b"",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_bytes_that_are_no_request_are_refused(http: httpx2.Client, body: bytes) -> None:
    answer = http.post("controls", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert "\n" not in answer.json()["error"]


def test_a_body_must_be_declared_as_json(http: httpx2.Client) -> None:
    """A form or plain text is what a page of another site can send without being asked."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        refused(http.post("pause", content=b'{"author":"ann"}', headers={"content-type": kind}), 415)


def head(run: RunDir, *lines: str, method: str = "POST", path: str = "/api/v1/pause") -> bytes:
    first = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {run.api_token.read_text()}")
    return "\r\n".join((*first, "Content-Type: application/json", *lines, "", "")).encode()


def test_a_gigabyte_is_refused_from_its_head(client: RunClient, run: RunDir) -> None:
    reply = Raw(client).send(head(run, f"Content-Length: {2**30}"), b"x" * 300_000)
    assert (reply.status, b"65536" in reply.body) == (413, True), "and not 408 for the rest, which never comes"
    assert Raw(client).send(head(run, f"Content-Length: {2**30}", "Expect: 100-continue")).status == 413
    assert Raw(client).send(head(run, "Content-Length: 9999999999999999999999")).status in (400, 413)


def test_a_body_without_a_length_is_counted_as_it_comes(client: RunClient, run: RunDir) -> None:
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    assert Raw(client).send(head(run, "Transfer-Encoding: chunked"), *[chunk] * 64).status == 413
    reading = head(run, f"Content-Length: {BODY_BYTES + 1}", method="GET", path="/api/v1/state")
    assert Raw(client).send(reading).status == 413


def test_doubled_headers_and_huge_heads_are_refused(client: RunClient, run: RunDir) -> None:
    for line in ("Host: localhost", "Authorization: Bearer x", "Origin: http://a\r\nOrigin: http://b"):
        assert Raw(client).send(head(run, line, "Content-Length: 2"), b"{}").status == 400
    assert Raw(client).send(head(run)[:-4], b"\r\nX-Padding: ", *[b"x" * 20_000] * 20).status == 400
    assert Raw(client).send(b"\x16\x03\x01 hello\r\n\r\n").status == 400
    assert Raw(client).send(b"GET /api/v1/state HTTP/1.1\r\n\r\n").status == 400


def test_hundreds_of_silent_and_slow_peers_do_not_stop_service(
    client: RunClient, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More connect than may; the idle ones make room, long before they would be hung up on."""
    monkeypatch.setattr("deploy.api.server.HEADER_TIMEOUT_S", 3600.0)
    monkeypatch.setattr("deploy.api.guards.BODY_TIMEOUT_S", 3600.0)
    with ExitStack() as stack:
        for number in range(CONNECTIONS + 60):
            peer = stack.enter_context(Raw(client).connect())
            if number % 3:
                peer.sendall(b"GET /api/v1/state HT" if number % 3 == 1 else head(run, "Content-Length: 9") + b"{")
        with RunClient.attach(run) as person:
            assert person.state()["run"]["name"] == "debug"
            assert person.log(limit=5)


def test_silent_peers_are_hung_up_on(client: RunClient, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.api.server.HEADER_TIMEOUT_S", 0.4)
    silent, slow = Raw(client).connect(), Raw(client).connect()
    with silent, slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHo")
        for peer in (silent, slow):
            assert hung_up(peer)
    monkeypatch.undo()
    monkeypatch.setattr("deploy.api.guards.BODY_TIMEOUT_S", 0.4)
    with Raw(client).connect() as halfway:
        halfway.sendall(head(run, "Content-Length: 900") + b'{"author":')
        assert read_reply(halfway).status == 408


def test_a_peer_that_reads_nothing_is_cut_off(client: RunClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.api.server.SEND_TIMEOUT_S", 0.5)
    asked, received = 200, b""
    with Raw(client).connect() as peer:
        peer.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * asked)
        wait_for(lambda: not is_held(peer), "the end of the connection")
        try:
            while piece := peer.recv(2**20):
                received += piece
        except ConnectionResetError:
            pass
    assert received.count(b"HTTP/1.1 200") < asked


def is_held(peer: socket.socket) -> bool:
    """Whether the other end of a local connection is open; a peer that reads nothing is not told of its end."""
    ends = [f":{address[1]:04X}" for address in (peer.getpeername(), peer.getsockname())]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return any(row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[3] == ESTABLISHED for row in rows)


def hung_up(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_flood_is_refused_until_it_slows_down(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [http.get("loaders").status_code for _ in range(60)]
    assert set(answers) <= {200, 429}
    now = [0.0]
    bucket = Bucket(10.0, 3.0, clock=lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.1
    assert [bucket.take() for _ in range(2)] == [True, False]


def test_a_leaked_token_is_worth_nothing_once_it_is_renewed(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with RunClient.attach(run) as thief:
        assert thief.state()
        leaked = run.api_token.read_text()
        assert main(["token", "--run", str(run.path), "--renew", "--json"]) == 0
        assert leaked not in capsys.readouterr().out
        assert run.api_token.read_text() != leaked
        with RunClient.attach(run) as owner:
            wait_for(lambda: reads(owner) and not reads(thief), "the end of the old token")
    assert run.api_token.stat().st_mode & 0o777 == 0o600


def reads(client: RunClient) -> bool:
    try:
        return bool(client.state())
    except ValueError:
        return False


def test_no_secret_is_in_logs_files_or_answers(
    http: httpx2.Client, client: RunClient, run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    token = run.api_token.read_text()
    with caplog.at_level(logging.DEBUG):
        said = [ask(http, path).content for path in READS]
        pages = [http.get(http.base_url.join(path)) for path in ("/", "/metrics", "/assets/app.js")]
        Raw(client).send(head(run, "Content-Length: 3"), b"{x}")
        assert http.get("nowhere").status_code == 404
    assert all(page.status_code == 200 and page.content for page in pages)
    said += [page.content + str(page.headers).encode() for page in pages]
    assert not any(token.encode() in answer for answer in said)
    assert token not in caplog.text
    kept = [path for path in run.path.rglob("*") if path.is_file() and path != run.api_token]
    assert len(kept) > 3
    assert not [path for path in kept if token.encode() in path.read_bytes()]
    assert token.encode() not in Path("/proc/self/cmdline").read_bytes()


def test_what_a_stream_says_is_json_and_counted(http: httpx2.Client) -> None:
    with http.stream("GET", "stream") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: state"
        assert "progress" in json.loads(next(lines).removeprefix("data: "))
