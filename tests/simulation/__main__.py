"""python -m tests.simulation --minutes N --seed S: both simulated worlds for so long, and how many faults they took.

Each world lives life after life, every one with other faults, until its half of the time is over. A world that finds
the product wrong ends this with hypothesis's smallest program that shows it; the same seed gives the same lives.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import hypothesis
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test

from tests.simulation import test_selection_world as selection
from tests.simulation import test_stream_world as stream
from tests.simulation.worlds import world_settings

LIVES = 20
"""Lives between two looks at the clock."""
WORLDS: dict[str, tuple[type[RuleBasedStateMachine], Counter[str], Sequence[str], int]] = {
    "selection": (selection.SelectionWorld, selection.FAULTS, selection.KINDS, selection.STEPS),
    "stream": (stream.StreamWorld, stream.FAULTS, stream.KINDS, stream.STEPS),
}
"""Name -> world, what it counts, which of that are faults, rules in a life."""


def live(name: str, *, seconds: float, seed: int) -> dict[str, Any]:
    """Let one world live for so long; what befell it."""
    world, counted, kinds, steps = WORLDS[name]
    counted.clear()
    settings = world_settings(max_examples=LIVES, steps=steps, derandomize=False, database=None)
    began, lives = time.monotonic(), 0
    for turn in itertools.count():
        hypothesis.seed(seed * 10**6 + turn)(get_state_machine_test(world, settings=settings))()
        lives += LIVES
        if time.monotonic() - began >= seconds:
            break
    took = time.monotonic() - began
    faults = {kind: counted[kind] for kind in kinds}
    return {
        "lives": lives,
        "seconds": round(took, 1),
        "faults": faults,
        "faults_per_minute": round(60 * sum(faults.values()) / took),
    }


def main() -> None:
    """Let the worlds live that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(WORLDS)}; none means all")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all of them together")
    parser.add_argument("--seed", type=int, default=0, help="of their faults")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the product warns of each full disk
    names = asked.worlds or list(WORLDS)
    answer = {name: live(name, seconds=60 * asked.minutes / len(names), seed=asked.seed) for name in names}
    if asked.json:
        sys.stdout.write(json.dumps({"seed": asked.seed, **answer}, indent=1) + "\n")
        return
    for name, seen in answer.items():
        faults = ", ".join(f"{count} {kind}" for kind, count in seen["faults"].items())
        sys.stdout.write(
            f"{name}: {seen['lives']} lives in {seen['seconds']} s, {seen['faults_per_minute']:,} faults a minute "
            f"({faults}), no violation\n"
        )


if __name__ == "__main__":
    main()
