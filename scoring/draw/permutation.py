"""Uniform order without replacement: each epoch is a permutation, and any position of it is computed by itself.

Draw d is position d mod N of epoch d div N. Up to 2^20 samples an epoch is a true shuffle (the order of N random
words). Above, it is a keyed Feistel network walked until it lands below N: a bijection that needs no memory.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scoring.draw.sampling import Stream, random_words

Int64 = NDArray[np.int64]

SHUFFLE_LIMIT = 1 << 20
ROUNDS = 8


def permuted_ids(first_draw: int, count: int, *, num_samples: int, seed: int) -> Int64:
    """Sample ids of draws [first_draw, first_draw + count) of the uniform order."""
    ids = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, position = divmod(first_draw + done, num_samples)
        take = min(count - done, num_samples - position)
        ids[done : done + take] = _epoch_slice(epoch, position, take, num_samples, seed)
        done += take
    return ids


def _epoch_slice(epoch: int, position: int, count: int, num_samples: int, seed: int) -> Int64:
    if num_samples <= SHUFFLE_LIMIT:
        return _shuffled(epoch, num_samples, seed)[position : position + count]
    keys = random_words(seed, epoch, ROUNDS, Stream.SHUFFLE)
    return feistel(np.arange(position, position + count, dtype=np.uint64), keys, num_samples)


@lru_cache(maxsize=2)
def _shuffled(epoch: int, num_samples: int, seed: int) -> Int64:
    return np.argsort(random_words(seed, epoch, num_samples, Stream.SHUFFLE), kind="stable")


def feistel(positions: NDArray[np.uint64], keys: NDArray[np.uint64], num_samples: int) -> Int64:
    """A bijection of [0, num_samples) under the keys.

    Balanced Feistel rounds over an even number of bits, repeated for the positions that land outside: the cycle of each
    leads back inside.
    """
    half = np.uint64(max(1, -(-(num_samples - 1).bit_length() // 2)))
    mapped = _rounds(positions, keys, half)
    outside = np.flatnonzero(mapped >= num_samples)
    while len(outside):
        mapped[outside] = _rounds(mapped[outside], keys, half)
        outside = outside[mapped[outside] >= num_samples]
    return mapped.astype(np.int64)


def _rounds(values: NDArray[np.uint64], keys: NDArray[np.uint64], half: np.uint64) -> NDArray[np.uint64]:
    low_bits = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low_bits
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low_bits)
    return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
