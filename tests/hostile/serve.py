"""python -m tests.hostile.serve INDEX PROTOTYPES OUT: a real run with its API, paused until standard input ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.runs.config import DataConfig
from tests.deploy.api_run import alive, paused, tiny


def main() -> None:
    index, prototypes, out = sys.argv[1:]
    with alive(Path(out), tiny(DataConfig(index=index, prototypes=prototypes), steps=10**6)) as run:
        with paused(run):
            sys.stdout.write(json.dumps({"ready": True}) + "\n")
            sys.stdout.flush()
            sys.stdin.read()
        sys.stdout.write(json.dumps({"went_on": True}) + "\n")


if __name__ == "__main__":
    main()
