"""Replay: draw every window of a run again from its log, and compare with what was handed out.

The log's controls are folded anew, so a replay also proves that the temperature of each window follows from the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.config import SelectionConfig
from scoring.control_state import ControlState
from scoring.draw import draw_window
from scoring.errors import CorruptLog
from scoring.log.history import History
from scoring.log.runlog import RunLog
from scoring.records import Window, WindowFacts
from scoring.table.samples import SampleTable
from scoring.table.weights import WeightKey

TEMPERATURE_TOLERANCE = 1e-9
"""Relative; processors differ in the last digits of exp and log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayReport:
    """Outcome of a replay."""

    windows: int
    """Windows drawn again."""
    draws: int
    """Their draws, spares not counted."""
    different: tuple[str, ...]
    """One line for each window that is not as it was handed out; empty when the run is reproduced."""

    @property
    def reproduced(self) -> bool:
        """Whether every window came out the same."""
        return not self.different


def replay_run(
    log: RunLog,
    config: SelectionConfig,
    distance: NDArray[np.float32] | None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ReplayReport:
    """Draw every window again.

    Args:
        log: the run's log; it is only read.
        config: the run's configuration.
        distance: [N] the run's prototype distances; None if it had none.
        progress: called with (done, total).

    Returns:
        The differences, window by window.

    Raises:
        CorruptLog: if a row of the log is damaged.
    """
    stored = log.facts()
    different: list[str] = []
    draws = 0
    for (facts, digest), (again, expected) in zip(stored, _redrawn(log, config, distance, stored), strict=True):
        kept = log.window(facts.index)
        if again.digest != digest:
            different.append(f"window {facts.index}: digest {digest} in the log, {again.digest} drawn again")
        # Probabilities round differently between processors, so they are not in the digest and are compared loosely.
        elif kept is not None and not np.allclose(kept.probability, again.probability, rtol=1e-9, atol=0.0):
            different.append(f"window {facts.index}: its probabilities are not those of its weights")
        if not math.isclose(facts.temperature, expected, rel_tol=TEMPERATURE_TOLERANCE):
            different.append(
                f"window {facts.index}: temperature {facts.temperature}; the controls in the log give {expected}"
            )
        draws += facts.num_draws
        if progress is not None:
            progress(facts.index + 1, len(stored))
    return ReplayReport(windows=len(stored), draws=draws, different=tuple(different))


def redraw(log: RunLog, config: SelectionConfig, distance: NDArray[np.float32] | None, index: int) -> Window:
    """Draw one window of the log again, whose draws are no longer kept.

    Raises:
        CorruptLog: if it does not come out as it was.
    """
    ((facts, digest),) = log.facts(first=index)[:1]
    ((window, _),) = _redrawn(log, config, distance, [(facts, digest)])
    if window.digest != digest:
        raise CorruptLog(f"window {index} must have digest {digest}; drawn again it has {window.digest}.")
    return window


def _redrawn(
    log: RunLog,
    config: SelectionConfig,
    distance: NDArray[np.float32] | None,
    stored: list[tuple[WindowFacts, str]],
) -> Iterator[tuple[Window, float]]:
    """Yield each window drawn again, with the temperature that the controls in the log give for it."""
    size, user_policies = config.size_of(distance), config.curriculum.user_policies
    history = History(SampleTable(distance, num_samples=size, options=config.policy_options), user_policies)
    # A change that waited for its window comes before others in the log that took effect earlier: order by window.
    entries = sorted(log.entries(), key=lambda entry: entry.window)
    state, folded = ControlState.initial(config), 0
    for facts, _ in stored:
        history.follow(log, scores_through=facts.scores_through, rounds_through=facts.rounds_through)
        due = [entry for entry in entries[folded:] if entry.window <= facts.index]
        state, folded = state.after_all(due), folded + len(due)
        expected = state.resolve(history.table, user_policies).temperature
        weights = history.weigh(WeightKey.of_window(facts))
        yield draw_window(config, weights, index=facts.index, version=facts.version)[1], expected
