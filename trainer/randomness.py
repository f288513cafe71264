"""Counter-based random numbers of one training step.

Every number is a hash of (seed, step, purpose, row of the global batch, column). It depends neither on the rank, the
world size, the device or the accumulation nor on earlier draws. So a resumed run, and a run on another number of ranks,
draws the same masks without any generator state.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15  # odd constant of splitmix64 (Steele et al., OOPSLA 2014)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # Stafford's mix 13, the finaliser of splitmix64
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRandomness:
    """Source of the random numbers of one step for rows first_row, first_row + 1, ... of the global batch."""

    seed: int
    """Seed of the run."""
    step: int
    """Optimizer step, from 0."""
    first_row: int = 0
    """Row of the global batch that row 0 of the caller's tensor is."""

    def uniform(self, purpose: str, rows: int, columns: int, *, like: Tensor | None = None) -> Tensor:
        """Return uniforms in [0, 1), shape [rows, columns], on the device and in the dtype of `like`.

        Without `like`, float32 on the CPU. float64 carries 53 random bits, every other dtype 24 bits in float32.
        """
        device = like.device if like is not None else torch.device("cpu")
        row = torch.arange(self.first_row, self.first_row + rows, device=device)
        return _uniform(self.key(purpose), row, columns, like)

    def integer(self, purpose: str, high: int) -> int:
        """Return one integer in [0, high) that is the same on every rank."""
        return self.key(purpose) % high

    def generator(self, purpose: str, row: int) -> np.random.Generator:
        """Return a numpy generator for one row, for algorithms that draw a varying number of values."""
        return np.random.Generator(np.random.Philox(key=np.array([self.key(purpose), self.first_row + row], np.uint64)))

    def torch_seed(self, rank: int) -> int:
        """Return the seed of torch's own generator in this step, which draws stochastic depth alone."""
        return self.key(f"torch rank {rank}") >> 1

    def key(self, purpose: str) -> int:
        """Return the 64-bit hash of (seed, step, purpose)."""
        key = 0
        for part in (self.seed, self.step, crc32(purpose.encode())):
            key = _mix_int((key + part * _GAMMA + _GAMMA) & _MASK)
        return key


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRandomness:
    """Source of random numbers that belong to samples, not to steps: each sweep draws the same ones for a sample."""

    seed: int
    """Seed of the run."""
    sample_ids: np.ndarray
    """int64[B], the sample of each row of the caller's tensor."""

    def uniform(self, purpose: str, rows: int, columns: int, *, like: Tensor | None = None) -> Tensor:
        """Return uniforms in [0, 1), shape [rows, columns], as `StepRandomness.uniform` does."""
        row = torch.as_tensor(self.sample_ids, device=like.device if like is not None else None)
        assert len(row) == rows, "there must be one sample id a row"
        return _uniform(self._source.key(purpose), row, columns, like)

    def integer(self, purpose: str, high: int) -> int:
        """Return one integer in [0, high), the same for all samples."""
        return self._source.integer(purpose, high)

    def generator(self, purpose: str, row: int) -> np.random.Generator:
        """Return a numpy generator for the sample of one row."""
        return self._source.generator(purpose, int(self.sample_ids[row]))

    @property
    def _source(self) -> StepRandomness:
        return StepRandomness(seed=self.seed, step=0)


Randomness = StepRandomness | SampleRandomness


def _uniform(key: int, row: Tensor, columns: int, like: Tensor | None) -> Tensor:
    """Return the hash of (key, row, column) as uniforms in [0, 1)."""
    counter = row[:, None] * columns + torch.arange(columns, device=row.device)
    bits = _mix_tensor(counter * _signed(_GAMMA) + _signed(key))
    if like is not None and like.dtype == torch.float64:
        return _shift(bits, 11).to(torch.float64) * 2.0**-53
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _mix_int(value: int) -> int:
    """Apply the finaliser of splitmix64 to one integer."""
    for shift, factor in _MIX:
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(value: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 to int64 values, whose products wrap as unsigned ones do."""
    for shift, factor in _MIX:
        value = (value ^ _shift(value, shift)) * _signed(factor)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch's int64 shift copies it."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
