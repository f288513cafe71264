"""The methods by name: `METHODS[name](config)` builds a module whose forward returns `Losses`.

A method's own module is imported when the method is built, so that a name is checked without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from trainer.config import ModelConfig, choose, require

if TYPE_CHECKING:
    from trainer.methods.base import Method


def _builder(module: str, name: str) -> Callable[[ModelConfig], Method]:
    def build(config: ModelConfig) -> Method:
        method: type[Method] = getattr(import_module(f"trainer.methods.{module}"), name)
        return method(config)

    return build


METHODS: dict[str, Callable[[ModelConfig], Method]] = {
    "mae": _builder("mae", "Mae"),
    "clmae": _builder("clmae", "Clmae"),
    "simmim": _builder("simmim", "Simmim"),
    "bootmae": _builder("bootmae", "Bootmae"),
    "conmim": _builder("conmim", "Conmim"),
}

SELECTING = ("mae", "simmim")
"""Methods that patch-aware selection works with."""


def build_method(name: str, config: ModelConfig) -> Method:
    """Build a method by name.

    Raises:
        ValueError: the name is unknown; the message gives the nearest one.
    """
    build = choose(name, METHODS, "method")
    require(
        not config.pass_.enabled or name in SELECTING,
        f"pass works with {' and '.join(SELECTING)}; got method {name!r}. Set pass.enabled to false or change the "
        "method.",
    )
    return build(config)
