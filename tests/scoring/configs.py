"""Configurations, distances and changes of a selection, and features, for tests."""

from dataclasses import fields, replace
from typing import Any

import numpy as np

from scoring import Control, CurriculumConfig, SelectionConfig
from scoring.policies import PolicyPlan
from scoring.table.samples import SampleTable
from scoring.table.weights import WeightKey, WeightTable

CURRICULUM = {field.name for field in fields(CurriculumConfig)}


def selection_config(**changes: Any) -> SelectionConfig:
    """A configuration of these fields, each the curriculum's or the selection's own."""
    own = {name: value for name, value in changes.items() if name not in CURRICULUM}
    return changed(SelectionConfig(**own), **{name: changes[name] for name in changes.keys() & CURRICULUM})


def changed(config: SelectionConfig, **changes: Any) -> SelectionConfig:
    """The configuration with other fields."""
    curriculum = replace(config.curriculum, **{name: changes.pop(name) for name in changes.keys() & CURRICULUM})
    return replace(config, curriculum=curriculum, **changes)


def distances(num_samples: int = 1797, seed: int = 0) -> np.ndarray:
    """Prototype distances as ImageNet's are distributed, float32[N] in [0, 1]."""
    return np.random.default_rng(seed).beta(3.4, 2.38, num_samples).astype(np.float32)


def set_size(value: Any, **changes: Any) -> Control:
    """A change of the effective size by ann."""
    return Control(**{"kind": "effective_size", "value": value, "author": "ann", **changes})


def weight_table(weights: np.ndarray, **segments: int) -> WeightTable:
    """A weight table of given weights, float[N]."""
    plan = PolicyPlan(name="given", factors=("given",), functions=(lambda rows: weights[rows.sample_ids()],))
    table = SampleTable(None, num_samples=len(weights), **segments)
    return table.weigh(WeightKey(policy="given", temperature=1.0), plan)


def blobs(num_clusters: int, members: int, dimension: int, *, scale: float = 8.0) -> np.ndarray:
    """Features around seeded centres, float32[K * members, dimension], cluster by cluster."""
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=scale, size=(num_clusters, dimension))
    return (centres.repeat(members, 0) + rng.normal(size=(num_clusters * members, dimension))).astype(np.float32)
