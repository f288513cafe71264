"""Pre-training by masked image modeling: methods, one training loop, evaluation of what came out.

`train(config, stream, run_dir=...)` runs in one process with no Ray; `trainer.actors.train_on_ray` runs the same loop
under Ray Train.
"""

from trainer.config import ModelConfig, TrainConfig, from_dict, model_size, to_dict
from trainer.errors import CheckpointError, NonFiniteLossError, TrainerError
from trainer.loop import RunHooks, train
from trainer.methods import METHODS, Losses, Method, build_method
from trainer.progress import Progress
from trainer.randomness import StepRandomness
from trainer.ranks.context import Distributed, SingleProcess, current_context
from trainer.record.checkpoint import Checkpoints, load_checkpoint
from trainer.record.export import load_encoder, load_method
from trainer.record.metrics import read_metrics
from trainer.record.recorder import TrainResult
from trainer.windows import ScheduledWindows

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
