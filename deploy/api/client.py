"""RunClient: the Python client of a live run's HTTP API; the command line uses nothing else.

    with RunClient.attach(RunDir(Path("runs/mine"))) as run:
        reply = run.control("effective_size", 0.35, author="ann", reason="overfits the prototypes")
        print(reply["window"], run.state()["latency"])

The run directory holds the address and the token. For a run on another machine, forward its port and set
TEMPERA_API_URL and TEMPERA_API_TOKEN. This module imports nothing heavier than an HTTP library: commands start at once.
"""

from __future__ import annotations

import getpass
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2

from deploy.runs.rundir import RunDir, RunError, find_run

URL, TOKEN = "TEMPERA_API_URL", "TEMPERA_API_TOKEN"
TIMEOUT_S = 20.0
CONNECT_S = 3.0
TRIES = 2
"""A request whose connection broke is sent once more; controls carry an identity, so they are applied once."""
LOG_PAGE = 500


def find_run_here(path: Path | None) -> RunDir | None:
    """Return the run as `find_run` does; None where TEMPERA_API_URL names one, which may be on another machine.

    Raises:
        RunError: there is none.
    """
    return None if path is None and os.environ.get(URL) else find_run(path)


def author_name() -> str:
    """Return the user's name, for the log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid-{os.getuid()}"


class Refused(RunError):
    """The API refused a request, or did not answer (status 0); the message says why."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ChangedSince(Refused):
    """Another change came first: `version` is the control version now, `winner` the log entry of that change."""

    def __init__(self, message: str, version: int | None, winner: dict[str, Any] | None) -> None:
        super().__init__(message, 409)
        self.version, self.winner = version, winner


class RunClient(AbstractContextManager["RunClient"]):
    """A live run. Use as a context manager: it holds a connection."""

    def __init__(self, url: str, token: str) -> None:
        """Send nothing yet; the url is as http://127.0.0.1:PORT."""
        self.url = url.rstrip("/")
        self._http = httpx2.Client(
            base_url=f"{self.url}/api/v1/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(TIMEOUT_S, connect=CONNECT_S),
            trust_env=False,  # a proxy must not see the token
            verify=self.url.startswith("https:"),  # reading the certificates takes longer than the request
        )

    @classmethod
    def attach(cls, run: RunDir) -> RunClient:
        """Return the client of the run in a directory.

        Raises:
            RunError: the run is not alive, or its token is another person's.
        """
        url = run.api_url()
        if url is None:
            raise RunError(
                f"{run.path} is not running. `tempera resume {run.path}` continues it; `tempera log` reads its history."
            )
        if token := os.environ.get(TOKEN):
            return cls(url, token)
        try:
            return cls(url, run.api_token.read_text().strip())
        except OSError as error:
            raise RunError(
                f"{run.api_token} must be readable; it is not ({error.strerror}). Ask its owner, or set {TOKEN}."
            ) from error

    @classmethod
    def find(cls, path: Path | None) -> RunClient:
        """Return the client of the named run, or of TEMPERA_API_URL, or of the only run alive under runs/.

        Raises:
            RunError: there is none.
        """
        run = find_run_here(path)
        if run is None:
            token = os.environ.get(TOKEN, "").strip()
            if not token:
                raise RunError(f"{TOKEN} must hold the run's token where {URL} is set: the text of its api-token file.")
            return cls(os.environ[URL], token)
        return cls.attach(run)

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """GET a path below /api/v1/, as "state" or "samples/17".

        Raises:
            Refused: with the API's one line.
        """
        return self._request("GET", path, params={name: value for name, value in query.items() if value is not None})

    def state(self) -> dict[str, Any]:
        return self.get("state")

    def metrics(self, *, points: int) -> list[dict[str, Any]]:
        """Return rows of metrics.jsonl: at most `points` with a loss, and those without one."""
        rows: list[dict[str, Any]] = self.get("metrics", points=points)["rows"]
        return rows

    def log(self, *, limit: int, changes_only: bool = False) -> list[dict[str, Any]]:
        """Return the last entries of the run's log, oldest first, page by page."""
        entries: list[dict[str, Any]] = []
        before = None
        while len(entries) < limit:
            page = self.get("log", limit=min(LOG_PAGE, limit - len(entries)), before=before, changes=changes_only)
            entries = [*page["entries"], *entries]
            if not page["more"]:
                break
            before = entries[0]["sequence"]
        return entries

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield ("state" | "metrics" | "trouble", data) of the event stream until the run ends."""
        # The server sends a beat every second: silence for TIMEOUT_S means that it is gone.
        with self._http.stream("GET", "stream") as response:
            if response.status_code != httpx2.codes.OK:
                # A streamed body must be read before it can be parsed.
                response.read()
                _value(response)
            name = ""
            for line in response.iter_lines():
                key, _, text = line.partition(": ")
                if key == "event":
                    name = text
                elif key == "data":
                    yield name, json.loads(text)

    # -- changing -----------------------------------------------------------------------------------------------------

    def control(
        self,
        kind: str,
        value: float | str | None,
        *,
        author: str,
        reason: str = "",
        expected_version: int | None = None,
    ) -> dict[str, Any]:
        """Change what is drawn; the reply names the first window and step under the change.

        Kinds are effective_size, temperature, policy, distances and release; their values a number, a policy's name, a
        prototypes file on the run's machine, None. With an `expected_version` it must still be the control version.

        Raises:
            ChangedSince: another control came first.
            Refused: out of range.
        """
        # The identity lets the server apply once what `_request` may send twice.
        change = {"kind": kind, "value": value, "expected_version": expected_version, "request": uuid.uuid4().hex}
        return self.post("controls", author=author, reason=reason, **change)

    def scale(self, loaders: int, *, author: str, reason: str = "") -> dict[str, Any]:
        """Set the desired number of loader workers; the fleet starts or stops them, and the run log says so."""
        return self.post("scale", author=author, reason=reason, loaders=loaders)

    def post(self, path: str, *, author: str, reason: str = "", **body: Any) -> dict[str, Any]:
        """POST to a path below /api/v1/: "pause", "resume", "stop" or "export"; `deploy.api.changes` has the replies.

        Raises:
            Refused: with the API's one line, as for a run that is over.
        """
        return self._request("POST", path, json={"author": author, "reason": reason, **body})

    # -- inside -------------------------------------------------------------------------------------------------------

    def _request(self, method: str, path: str, **what: Any) -> dict[str, Any]:
        for left in reversed(range(TRIES)):
            try:
                return _value(self._http.request(method, path, **what))
            except httpx2.TransportError as error:
                # A timeout is not tried again: the run is slow, and the user has waited TIMEOUT_S already.
                if not left or isinstance(error, httpx2.TimeoutException):
                    raise Refused(
                        f"the run's API at {self.url} does not answer ({error or type(error).__name__}). Has the run "
                        "ended? `tempera status` says; `tempera resume RUN_DIR` continues it."
                    ) from error
        raise AssertionError("the last try answers or raises")


def _value(response: httpx2.Response) -> dict[str, Any]:
    """Return the answer's JSON, or raise its refusal."""
    try:
        value: dict[str, Any] = response.json()
    except ValueError:
        raise Refused(f"the API answered {response.status_code} and no JSON.", response.status_code) from None
    if response.is_success:
        return value
    message = str(value.get("error", response.status_code))
    if value.get("version") is not None:  # without a winner: the version never was
        raise ChangedSince(message, value.get("version"), value.get("winner"))
    raise Refused(message, response.status_code)
