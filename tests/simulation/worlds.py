"""What the simulated worlds share: how long they run, and that their faults came often enough to mean something."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

CHOSEN = "TEMPERA_SIMULATIONS"
"""Environment variable: so many examples of each world, and other ones each time."""


def examples(ordinary: int) -> int:
    """How many lives a world lives."""
    return int(os.environ.get(CHOSEN, str(ordinary)))


def world_settings(*, max_examples: int, steps: int, **changes: Any) -> settings:
    """Settings of a world: the same lives every time, unless somebody asks for others."""
    ordinary = {"deadline": None, "derandomize": CHOSEN not in os.environ, "suppress_health_check": list(HealthCheck)}
    return settings(max_examples=max_examples, stateful_step_count=steps, **ordinary | changes)


def too_rare(faults: Counter[str], kinds: Iterable[str], *, fewest: float) -> dict[str, int]:
    """The kinds of fault that came fewer times than that, with how often they came."""
    return {kind: faults[kind] for kind in kinds if faults[kind] < fewest}


def assert_found_out(world: type[RuleBasedStateMachine], *, max_examples: int, steps: int) -> None:
    """Check that a world whose product has lost a defence fails, by an assertion or what the broken part raises."""
    chosen = world_settings(max_examples=max_examples, steps=steps, phases=[Phase.generate])
    with pytest.raises(BaseException):  # noqa: B017, PT011 - either of the two
        run_state_machine_as_test(world, settings=chosen)
