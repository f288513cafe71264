"""Drawing a window: from a law, the table and the seed to sample ids. A pure function, used live and in replay."""

from __future__ import annotations

from dataclasses import dataclass

from scoring.config import SelectionConfig
from scoring.controls import Resolved
from scoring.draw.permutation import permuted_ids
from scoring.draw.sampling import random_uniforms
from scoring.policies import PolicyPlan
from scoring.records import Window, WindowFacts
from scoring.table.samples import SampleTable, WeightTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """What decides a weight table, besides the data: equal laws have equal tables."""

    policy: str
    """Policy name."""
    temperature: float
    """Temperature."""
    scores_through: int
    """Last score report that the weights see; 0 where they see none."""
    rounds_through: int
    """Last change of the table that the weights see; 0 where they see none."""

    @staticmethod
    def of(resolved: Resolved, *, scores_through: int, rounds_through: int, distances_through: int) -> Law:
        """The law of a resolved control state at a position of the log."""
        plan = resolved.plan
        changes = distances_through if plan.reads_distances else 0
        return Law(
            policy=plan.name,
            temperature=resolved.temperature,
            scores_through=scores_through if plan.reads_scores else 0,
            rounds_through=rounds_through if plan.reads_rounds else changes,
        )

    @staticmethod
    def of_window(facts: WindowFacts) -> Law:
        """The law that a window was drawn under."""
        return Law(
            policy=facts.policy,
            temperature=facts.temperature,
            scores_through=facts.scores_through,
            rounds_through=facts.rounds_through,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """A weight table with the law that it follows."""

    law: Law
    """The law."""
    plan: PolicyPlan
    """Its policy."""
    weights: WeightTable
    """The table."""
    effective_size: float
    """Expected share of distinct samples in N draws."""

    @staticmethod
    def build(table: SampleTable, resolved: Resolved, law: Law) -> Weighed:
        """Weigh the table under a law; ValueError if the policy's weights are not usable."""
        weights = table.weights(resolved.plan, law.temperature)
        size = resolved.effective_size
        size = weights.effective_size() if size is None else size
        return Weighed(law=law, plan=resolved.plan, weights=weights, effective_size=size)


def draw_window(
    config: SelectionConfig, weighed: Weighed, *, num_samples: int, index: int, version: int
) -> tuple[WindowFacts, Window]:
    """Draw one window; the same arguments give the same window."""
    law, draws = weighed.law, config.window_draws
    facts = WindowFacts(
        index=index,
        version=version,
        first_draw=index * draws,
        policy=law.policy,
        temperature=law.temperature,
        effective_size=weighed.effective_size,
        num_draws=draws,
        num_spares=config.window_spares,
        scores_through=law.scores_through,
        rounds_through=law.rounds_through,
    )
    ids, probability = weighed.weights.draw(random_uniforms(config.seed, index, draws + facts.num_spares))
    if weighed.plan.permuted:
        ids[:draws] = permuted_ids(facts.first_draw, draws, num_samples=num_samples, seed=config.seed)
    return facts, Window.sealed(facts, ids, probability)
