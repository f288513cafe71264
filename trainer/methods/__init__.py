"""The methods by name: `METHODS[name](config)` builds a module whose forward returns `Losses`."""

from collections.abc import Callable

from trainer.config import ModelConfig, choose, require
from trainer.losses import Losses
from trainer.methods.base import Method
from trainer.methods.bootmae import Bootmae
from trainer.methods.clmae import Clmae
from trainer.methods.conmim import Conmim
from trainer.methods.mae import Mae
from trainer.methods.simmim import Simmim

METHODS: dict[str, Callable[[ModelConfig], Method]] = {
    "mae": Mae,
    "clmae": Clmae,
    "simmim": Simmim,
    "bootmae": Bootmae,
    "conmim": Conmim,
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


__all__ = ["METHODS", "SELECTING", "Losses", "Method", "build_method"]
