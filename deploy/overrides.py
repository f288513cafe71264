"""Fields of a run changed from the command line: `train.total_steps=200`, `curriculum.end=0.5`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from deploy.config import RunConfig
from trainer.config import choose, from_dict


def override(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """A copy of the run with some fields changed.

    Args:
        config: the run.
        settings: `dotted.field=value`; a value is read as JSON, or taken as a word where it is none.

    Raises:
        ValueError: no "=", no such field (the nearest is named), or a value out of range.
    """
    values = asdict(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting must be field=value; got {setting!r}.")
        *parents, leaf = path.split(".")
        place: dict[str, Any] = values
        for parent in parents:
            place = choose(parent, place, f"a group of {path!r}")
            if not isinstance(place, dict):
                raise ValueError(f"{parent!r} in {path!r} must be a group of fields; it is a single value.")
        choose(leaf, place, f"a field of {'.'.join(parents) or 'the run'}")
        place[leaf] = _value(text)
    return from_dict(RunConfig, values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
