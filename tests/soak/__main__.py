"""Train on the bundled digits while processes are killed and frozen, storage fails and people steer; judge the run.

`python -m tests.soak --minutes 20 --seed 22`. Exit status 1 when a promise was broken or something leaked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from deploy.runs.rundir import RunError
from tests.soak.faults import FAULTS
from tests.soak.session import soak


def main() -> int:
    """Run under faults and print its verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="length of the run, above 0")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults and their times")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="new folder for everything that is written")
    parser.add_argument("--kinds", nargs="*", default=(), choices=sorted(FAULTS), help="only these faults")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes must be above 0; got {options.minutes:g}.")
    try:
        outcome = soak(options.out, minutes=options.minutes, seed=options.seed, kinds=tuple(options.kinds))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(outcome.data()))
    else:
        Console().print(outcome.view())
    return bool(outcome.violations)


if __name__ == "__main__":
    sys.exit(main())
