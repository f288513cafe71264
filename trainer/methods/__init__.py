"""The methods by name: `METHODS[name](config)` builds a module whose forward returns `Losses`.

A method's module, and torch with it, is imported when the method is first built: a run's config is checked without.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from trainer.config import ModelConfig, choose, require

if TYPE_CHECKING:
    from trainer.methods.base import Method


def _imported(module: str, name: str) -> Callable[[ModelConfig], Method]:
    def build(config: ModelConfig) -> Method:
        method: Method = getattr(import_module(f"trainer.methods.{module}"), name)(config)
        return method

    return build


METHODS: dict[str, Callable[[ModelConfig], Method]] = {
    "mae": _imported("mae", "Mae"),
    "clmae": _imported("clmae", "Clmae"),
    "simmim": _imported("simmim", "Simmim"),
    "bootmae": _imported("bootmae", "Bootmae"),
    "conmim": _imported("conmim", "Conmim"),
}

SELECTING = ("mae", "simmim")
"""Methods that patch-aware selection works with."""


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
