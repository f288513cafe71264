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
    """Source of the random numbers of one step, for the rows of the global batch that the caller's tensor holds.

    They are rows first_row, first_row + 1, ..., or, for numbers that belong to samples rather than to places in a
    batch, those that `row_ids` names.
    """

    seed: int
    """Seed of the run."""
    step: int
    """Optimizer step, from 0."""
    first_row: int = 0
    """Row of the global batch that row 0 of the caller's tensor is."""
    row_ids: np.ndarray | None = None
    """int64[B], the row's number for each row of the caller's tensor, e.g. its sample id; then first_row is unused."""

    def uniform(self, purpose: str, rows: int, columns: int, *, like: Tensor | None = None) -> Tensor:
        """Return uniforms in [0, 1), shape [rows, columns], on the device and in the dtype of `like`.

        Without `like`, float32 on the CPU. float64 carries 53 random bits, every other dtype 24 bits in float32.
        """
        device = like.device if like is not None else torch.device("cpu")
        if self.row_ids is None:
            row = torch.arange(self.first_row, self.first_row + rows, device=device)
        else:
            row = torch.as_tensor(self.row_ids, device=device)
            assert len(row) == rows, "there must be one id a row"
        # splitmix64 without its state: the counter is the place in the table, so every entry is drawn by itself.
        counter = row[:, None] * columns + torch.arange(columns, device=device)
        bits = _mix_tensor(counter * _signed(_GAMMA) + _signed(self.key(purpose)))
        # The upper bits, as many as the mantissa holds: a product with a power of two is exact and stays below 1.
        if like is not None and like.dtype == torch.float64:
            return _shift(bits, 11).to(torch.float64) * 2.0**-53
        return _shift(bits, 40).to(torch.float32) * 2.0**-24

    def generator(self, purpose: str, row: int) -> np.random.Generator:
        """Return a numpy generator for one row of the caller's tensor.

        For algorithms that draw a varying number of values, which a table of uniforms cannot serve.
        """
        number = self.first_row + row if self.row_ids is None else int(self.row_ids[row])
        return np.random.Generator(np.random.Philox(key=np.array([self.key(purpose), number], np.uint64)))

    def key(self, purpose: str) -> int:
        """Return the hash of (seed, step, purpose), in [0, 2^64): one number for the step, the same on every rank."""
        key = 0
        # CRC-32 and not hash(): Python salts the hash of a string anew in every process.
        for part in (self.seed, self.step, crc32(purpose.encode())):
            key = _mix_int((key + part * _GAMMA + _GAMMA) & _MASK)
        return key


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
