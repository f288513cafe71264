"""Small plain stand-ins for the loader and the selection, and the golden numbers."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from trainer import ModelConfig, TrainConfig, model_size

GOLDENS = json.loads((Path(__file__).parent / "goldens.json").read_text())


def tiny(**fields) -> ModelConfig:
    """A model that takes a millisecond."""
    small = {"image_size": 16, "patch_size": 4, "width": 32, "depth": 2, "heads": 2}
    return model_size("tiny", **(small | {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2} | fields))


def tiny_run(**fields) -> TrainConfig:
    """A run of a few steps."""
    base = {"model": tiny(), "total_steps": 8, "global_batch": 8, "warmup_steps": 2, "window_steps": 4, "log_every": 1}
    return TrainConfig(**(base | {"base_lr": 1e-2, "device": "cpu"} | fields))


@dataclass
class FakeBatch:
    images: torch.Tensor
    sample_ids: np.ndarray
    step: int
    version: int = 0
    wait_s: float = 0.0


@dataclass
class FakeStream:
    """Batches that are a pure function of the step, as the loader's are."""

    config: TrainConfig
    rank: int = 0
    world_size: int = 1
    num_samples: int = 64
    spoil: tuple[int, int] | None = None
    next_step: int = 0

    def __iter__(self):
        while self.next_step < self.config.total_steps:
            step = self.next_step
            self.next_step += 1
            yield self.batch(step)

    def batch(self, step: int) -> FakeBatch:
        generator = np.random.default_rng([1, step])
        ids = generator.integers(self.num_samples, size=self.config.global_batch)
        local = len(ids) // self.world_size
        mine = ids[self.rank * local : (self.rank + 1) * local]
        return FakeBatch(self.images(mine), mine, step)

    def images(self, ids) -> torch.Tensor:
        """Smooth images that differ by sample."""
        size = self.config.model.image_size
        grid = np.arange(size) / size
        rows = [np.sin(2 * np.pi * (grid[:, None] * (i % 5) + grid[None] * (i % 7) + i / 9)) for i in ids]
        pixels = np.stack([np.stack([row, row * 0.5, -row]) for row in rows])
        return torch.from_numpy((127.5 + 120 * pixels).astype(np.uint8))

    def state_dict(self):
        return {"step": self.next_step}

    def load_state_dict(self, state):
        self.next_step = state["step"]


@dataclass
class FakeSelection:
    """Keeps what is reported; can be held up or broken."""

    gate: threading.Event | None = None
    fail: bool = False
    reports: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def report_scores(self, ids, values, *, kind="bss", step, producer, sequence):
        if self.gate is not None:
            self.gate.wait(60)
        if self.fail:
            raise ConnectionError("the selection is away")
        self.reports.append((np.array(ids), np.array(values), kind, step, producer, sequence))

    def window(self, index, *, effective_size=None):
        self.asked.append((index, effective_size))
        return index
