"""python -m tests.hostile.serve INDEX PROTOTYPES OUT: a real run with its API, at rest until standard input ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.api.client import RunClient
from deploy.runs.config import DataConfig
from tests.deploy.api_run import alive, tiny, wait_for


def main() -> None:
    index, prototypes, out = sys.argv[1:]
    with alive(Path(out), tiny(DataConfig(index=index, prototypes=prototypes), steps=10**6)) as run:
        with RunClient.attach(run) as client:
            client.post("pause", author="test")
            wait_for(lambda: client.state()["paused"], "the rest")
        sys.stdout.write(json.dumps({"ready": True}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        with RunClient.attach(run) as client:
            before = client.state()["progress"]["step"]
            client.post("resume", author="test")
            wait_for(lambda: client.state()["progress"]["step"] > before, "a step after all this")
        sys.stdout.write(json.dumps({"went_on": True}) + "\n")


if __name__ == "__main__":
    main()
