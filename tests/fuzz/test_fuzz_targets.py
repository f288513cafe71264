"""Every fuzz target takes its seeds and some hundred damaged ones: what a fuzzer runs for minutes cannot rot."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz.seeds import mutants, seeds
from tests.fuzz.targets import TARGETS

COUNTS = {"index": 300, "tar": 3000, "image": 2000, "replay": 200, "snapshot": 1500, "control": 1000}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_takes_damaged_input(target: str) -> None:
    run = TARGETS[target]
    accepted = Counter(run(data) for data in seeds(target))
    assert accepted[True], "no seed is accepted: the target is blind"
    damaged = Counter(run(data) for data in mutants(target, count=COUNTS[target]))
    assert damaged[False], "all damage is accepted: it does nothing"
