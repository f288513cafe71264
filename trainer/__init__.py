"""Pre-training by masked image modeling: methods, one training loop, evaluation of what came out.

`train(config, stream, run_dir=...)` runs in one process with no Ray; `trainer.actors.train_on_ray` runs the same loop
under Ray Train. What needs torch is imported when it is first used: a process that only reads a config starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.config import ModelConfig, TrainConfig, from_dict, model_size, to_dict
from trainer.errors import CheckpointError, NonFiniteLossError, TrainerError
from trainer.methods import METHODS, build_method
from trainer.progress import Progress
from trainer.record.metrics import read_metrics

if TYPE_CHECKING:
    from trainer.loop import RunHooks, train
    from trainer.losses import Losses
    from trainer.methods.base import Method
    from trainer.randomness import StepRandomness
    from trainer.ranks.context import Distributed, SingleProcess, current_context
    from trainer.record.checkpoint import Checkpoints, load_checkpoint
    from trainer.record.export import load_encoder, load_method
    from trainer.record.recorder import TrainResult
    from trainer.windows import ScheduledWindows

_WITH_TORCH = {
    "trainer.losses": ("Losses",),
    "trainer.loop": ("RunHooks", "train"),
    "trainer.methods.base": ("Method",),
    "trainer.randomness": ("StepRandomness",),
    "trainer.ranks.context": ("Distributed", "SingleProcess", "current_context"),
    "trainer.record.checkpoint": ("Checkpoints", "load_checkpoint"),
    "trainer.record.export": ("load_encoder", "load_method"),
    "trainer.record.recorder": ("TrainResult",),
    "trainer.windows": ("ScheduledWindows",),
}

__all__ = [
    "METHODS",
    "CheckpointError",
    "Checkpoints",
    "Distributed",
    "Losses",
    "Method",
    "ModelConfig",
    "NonFiniteLossError",
    "Progress",
    "RunHooks",
    "ScheduledWindows",
    "SingleProcess",
    "StepRandomness",
    "TrainConfig",
    "TrainResult",
    "TrainerError",
    "build_method",
    "current_context",
    "from_dict",
    "load_checkpoint",
    "load_encoder",
    "load_method",
    "model_size",
    "read_metrics",
    "to_dict",
    "train",
]


def __getattr__(name: str) -> Any:
    for module, names in _WITH_TORCH.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
