"""Encoders out of runs: a frozen encoder to evaluate, and a timm state dict for other programs."""

from pathlib import Path

from torch import nn

from trainer.checkpoint import load_checkpoint
from trainer.config import TrainConfig, from_dict
from trainer.methods import Method, build_method


def load_method(path: str | Path, *, averaged: bool = False) -> tuple[TrainConfig, Method]:
    """Load the trained method of a run directory (its newest checkpoint) or of one checkpoint, in eval mode on the CPU.

    Args:
        path: run directory, its checkpoints directory, or one step-* directory.
        averaged: take the moving average of the weights, when the run kept one.

    Raises:
        CheckpointError: there is no intact checkpoint.
    """
    checkpoint = load_checkpoint(path)
    config = from_dict(TrainConfig, checkpoint.state["config"])
    method = build_method(config.method, config.model)
    method.load_state_dict(checkpoint.tensors["model"] | (checkpoint.tensors.get("ema", {}) if averaged else {}))
    return config, method.eval()


def load_encoder(path: str | Path, *, averaged: bool = False) -> nn.Module:
    """Load the trained encoder of a run, in eval mode on the CPU; `features(images)` gives its tokens."""
    return load_method(path, averaged=averaged)[1].encoder
