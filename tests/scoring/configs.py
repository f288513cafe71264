"""Configurations of a selection, with the curriculum's fields beside its own."""

from dataclasses import fields, replace
from typing import Any

from scoring import CurriculumConfig, SelectionConfig

CURRICULUM = {field.name for field in fields(CurriculumConfig)}


def selection_config(**changes: Any) -> SelectionConfig:
    """A configuration of these fields, each the curriculum's or the selection's own."""
    own = {name: value for name, value in changes.items() if name not in CURRICULUM}
    return changed(SelectionConfig(**own), **{name: changes[name] for name in changes.keys() & CURRICULUM})


def changed(config: SelectionConfig, **changes: Any) -> SelectionConfig:
    """The configuration with other fields."""
    curriculum = replace(config.curriculum, **{name: changes.pop(name) for name in changes.keys() & CURRICULUM})
    return replace(config, curriculum=curriculum, **changes)
