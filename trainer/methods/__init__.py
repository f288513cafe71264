"""The methods by name: `METHODS[name](config)` builds a module whose forward returns `Losses`.

A method's module is imported when the method is first built, so that a run's config is checked without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from trainer.config import ModelConfig, choose, require

if TYPE_CHECKING:
    from trainer.methods.base import Method


def _import_and_build(module: str, name: str, config: ModelConfig) -> Method:
    method: Method = getattr(import_module(f"trainer.methods.{module}"), name)(config)
    return method


METHODS: dict[str, Callable[[ModelConfig], Method]] = {
    "mae": partial(_import_and_build, "mae", "Mae"),
    "clmae": partial(_import_and_build, "clmae", "Clmae"),
    "simmim": partial(_import_and_build, "simmim", "Simmim"),
    "bootmae": partial(_import_and_build, "bootmae", "Bootmae"),
    "conmim": partial(_import_and_build, "conmim", "Conmim"),
}

SELECTING = ("mae", "simmim")
"""Methods that patch-aware selection works with; each is a `SelectingMethod`."""


def build_method(name: str, config: ModelConfig) -> Method:
    """Build a method by name.

    Raises:
        ValueError: the name is unknown (the message gives the nearest one), or PASS is on and the method cannot select.
    """
    build = choose(name, METHODS, "method")
    require(
        not config.pass_.enabled or name in SELECTING,
        f"pass works with {' and '.join(SELECTING)}; got method {name!r}. Set pass.enabled to false or change the "
        "method.",
    )
    return build(config)
