"""Pre-training by masked image modeling: methods, one training loop, evaluation of the encoder.

`train(config, stream, run_dir=...)` runs in one process without Ray; `trainer.actors.train_on_ray` runs the same loop
under Ray Train. Configs import no torch; the names below that need it import it when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.config import ModelConfig, TrainConfig, from_dict, model_size
from trainer.errors import CheckpointError, NonFiniteLossError, TrainerError
from trainer.methods import METHODS, build_method
from trainer.progress import Progress, TrainResult
from trainer.record.metrics import read_metrics

if TYPE_CHECKING:
    from trainer.loop import RunHooks, train
    from trainer.methods.base import Method
    from trainer.methods.losses import Losses
    from trainer.randomness import StepRandomness
    from trainer.ranks.context import Context, current_context
    from trainer.record.checkpoint import Checkpoints, load_checkpoint
    from trainer.record.export import load_method
    from trainer.windows import ScheduledWindows

_MODULES = {
    "Checkpoints": "trainer.record.checkpoint",
    "Context": "trainer.ranks.context",
    "Losses": "trainer.methods.losses",
    "Method": "trainer.methods.base",
    "RunHooks": "trainer.loop",
    "ScheduledWindows": "trainer.windows",
    "StepRandomness": "trainer.randomness",
    "current_context": "trainer.ranks.context",
    "load_checkpoint": "trainer.record.checkpoint",
    "load_method": "trainer.record.export",
    "train": "trainer.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


__all__ = [
    "METHODS",
    "CheckpointError",
    "Checkpoints",
    "Context",
    "Losses",
    "Method",
    "ModelConfig",
    "NonFiniteLossError",
    "Progress",
    "RunHooks",
    "ScheduledWindows",
    "StepRandomness",
    "TrainConfig",
    "TrainResult",
    "TrainerError",
    "build_method",
    "current_context",
    "from_dict",
    "load_checkpoint",
    "load_method",
    "model_size",
    "read_metrics",
    "train",
]
