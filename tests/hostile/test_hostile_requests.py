"""Requests as no library sends them, to the API of a real run: each is refused, and the run goes on unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.api.client import RunClient
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir
from tests.deploy.api_run import Raw
from tests.hostile.requests import TOKEN, cases
from tests.runs import wait_for

MOST_MB = 64.0


@dataclass(frozen=True)
class Served:
    """A run that is served by another process."""

    run: RunDir
    pid: int
    client: RunClient

    def send(self, data: bytes) -> int:
        """The status of the first answer; one that comes too fast is sent again."""
        whole = data.replace(TOKEN, self.run.api_token.read_bytes().strip())
        while True:
            reply = Raw(self.client).send(whole)
            if reply.status != 429:
                return reply.status
            time.sleep(0.3)

    def peak_mb(self) -> float:
        """Highest resident size since `settle`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def settle(self) -> None:
        """Set the highest mark down to what there is."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def descriptors(self) -> int:
        """Files and sockets that it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, digits: DataConfig) -> Iterator[Served]:
    out = tmp_path_factory.mktemp("served") / "run"
    command = [sys.executable, "-m", "tests.hostile.serve", str(digits.index), str(digits.prototypes), str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"}) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert json.loads(child.stdout.readline())["ready"]
        run = RunDir(out)
        with RunClient.attach(run) as client:
            yield Served(run, child.pid, client)
        child.stdin.close()
        assert "went_on" in child.stdout.read(), "the run must go on when all this is over"
    assert child.returncode == 0


@pytest.mark.parametrize("request_", list(cases()), ids=lambda request: request.name)
def test_a_hostile_request_is_refused(served: Served, request_: object) -> None:
    assert served.send(request_.data) in request_.status  # type: ignore[attr-defined]


def test_hundreds_of_hostile_requests_change_nothing_and_leave_nothing(served: Served) -> None:
    """All of them again, twice: no entry in the log, no memory, no descriptor more."""
    changed = served.client.log(limit=50)
    for request in cases():
        served.send(request.data)
    time.sleep(1.0)
    served.settle()
    memory, descriptors = served.peak_mb(), served.descriptors()
    for _ in range(2):
        for request in cases():
            served.send(request.data)
    assert served.peak_mb() - memory < MOST_MB
    # Connections and files of other threads; a leak would be hundreds.
    wait_for(lambda: served.descriptors() <= descriptors + 8, "the end of its connections", patience_s=20)
    assert served.client.log(limit=50) == changed
    assert "smuggler" not in json.dumps(changed, default=str)
