"""Fields of a run changed from the command line: `train.total_steps=200`, `curriculum.end=0.5`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TypeVar, get_args

from trainer.config import Masking, choose, from_dict
from trainer.method_config import MTO_PRESETS

C = TypeVar("C")


def override(config: C, settings: Iterable[str]) -> C:
    """Return a copy of a run, or of an evaluation's recipe, with fields changed by settings `dotted.field=value`.

    A value that is not JSON is taken as a string.

    Raises:
        ValueError: no "=", no such field (the nearest is named), or a value out of range.
    """
    values: dict[str, Any] = asdict(config)  # type: ignore[call-overload]  # a config is a dataclass
    # The whole config is built anew from plain values, so that every rule is checked on the changed run.
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting must be field=value; got {setting!r}.")
        *parents, leaf = path.split(".")
        place = values
        for parent in parents:
            place = choose(parent, place, f"a group of {path!r}")
            if not isinstance(place, dict):
                raise ValueError(f"{parent!r} in {path!r} must be a group of fields; it is a single value.")
        choose(leaf, place, f"a field of {'.'.join(parents) or type(config).__name__}")
        try:
            place[leaf] = json.loads(text)
        except json.JSONDecodeError:
            place[leaf] = text  # names need no quotes on a command line
    return from_dict(type(config), values)


def combination(*, method: str | None, masking: str | None, curriculum: str | None, mto: str | None) -> list[str]:
    """Return settings for the parts that are combined by name; None leaves a part of the run as it is.

    `curriculum` is a selection policy: pass and bss, alone or in a product, also turn patch-aware selection on.

    Raises:
        ValueError: no such masking or preset; the nearest is named. Methods and policies are checked with the run.
    """
    settings = []
    if method is not None:
        settings.append(f"train.method={method}")
    if masking is not None:
        choose(masking, dict.fromkeys(get_args(Masking)), "masking")
        settings.append(f"train.model.masking={masking}")
    if curriculum is not None:
        settings.append(f"curriculum.policy={curriculum}")
        # These two policies draw by scores that the trainer reports only when its patch-aware selection is on.
        selecting = [name for name in ("pass", "bss") if name in curriculum.split("*")]
        settings += [f"train.model.pass_.{field}" for name in selecting for field in ("enabled=true", f"score={name}")]
    if mto is not None:
        settings.append(f"train.model.mto={json.dumps(asdict(choose(mto, MTO_PRESETS, 'mto preset')))}")
    return settings
