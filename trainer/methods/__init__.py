"""The methods by name: `METHODS[name](config)` builds a module whose forward returns `Losses`."""

from collections.abc import Callable

from trainer.config import ModelConfig, choose
from trainer.methods.base import Losses, Method, Progress
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


def build_method(name: str, config: ModelConfig) -> Method:
    """Build a method by name.

    Raises:
        ValueError: the name is unknown; the message gives the nearest one.
    """
    return choose(name, METHODS, "method")(config)


__all__ = ["METHODS", "Losses", "Method", "Progress", "build_method"]
