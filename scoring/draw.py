"""Drawing a window: from a weight table and a seed to sample ids. Pure functions, used live and in a replay.

Uniforms come from Philox keyed by (seed, window), as raw 64-bit words, whose stream numpy guarantees. The policy
`uniform` takes its ids from a permutation instead: draw d is position d mod N of epoch d div N, so any position can be
computed by itself. Up to 2^20 samples an epoch is a true shuffle (the order of N random words). Above, it is a keyed
Feistel network walked until it lands below N: a bijection that needs no memory.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scoring.config import SelectionConfig
from scoring.records import Window, WindowFacts
from scoring.table.weights import Float64, Int64, WeightTable

UInt64 = NDArray[np.uint64]

SHUFFLE_LIMIT = 1 << 20
ROUNDS = 8


class Stream(IntEnum):
    """Purposes of random words; each has its own counter range under one key."""

    DRAWS = 0
    SHUFFLE = 1


def draw_window(
    config: SelectionConfig, weights: WeightTable, *, index: int, version: int
) -> tuple[WindowFacts, Window]:
    """Draw one window; the same arguments give the same window."""
    key, draws = weights.key, config.global_batch * config.window_steps
    facts = WindowFacts(
        index=index,
        version=version,
        first_draw=index * draws,
        policy=key.policy,
        temperature=key.temperature,
        effective_size=weights.effective_size,
        num_draws=draws,
        num_spares=max(1, round(config.curriculum.spare_fraction * draws)),
        scores_through=key.scores_through,
        rounds_through=key.rounds_through,
    )
    ids, probability = weights.draw(random_uniforms(config.seed, index, draws + facts.num_spares))
    # Policy `uniform` alone is drawn without replacement; its spares are draws with replacement, as of any policy.
    if weights.plan.factors == ("uniform",):
        ids[:draws] = permuted_ids(facts.first_draw, draws, num_samples=weights.num_samples, seed=config.seed)
    return facts, Window.sealed(facts, ids, probability)


def random_uniforms(seed: int, window: int, count: int) -> Float64:
    """Return `count` uniforms in [0, 1), multiples of 2^-53."""
    words = random_words(seed, window, count, Stream.DRAWS)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def random_words(seed: int, key: int, count: int, stream: Stream) -> UInt64:
    """Return raw Philox4x64 words of (seed, key) for one purpose."""
    words = np.random.Philox(key=np.array([seed, key], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))
    return words.random_raw(count)


def permuted_ids(first_draw: int, count: int, *, num_samples: int, seed: int) -> Int64:
    """Return the sample ids of draws [first_draw, first_draw + count) of the uniform order."""
    ids, done = np.empty(count, np.int64), 0
    while done < count:
        epoch, position = divmod(first_draw + done, num_samples)
        take = min(count - done, num_samples - position)
        if num_samples <= SHUFFLE_LIMIT:
            part = _shuffled(epoch, num_samples, seed)[position : position + take]
        else:
            keys = random_words(seed, epoch, ROUNDS, Stream.SHUFFLE)
            part = feistel(np.arange(position, position + take, dtype=np.uint64), keys, num_samples)
        ids[done : done + take] = part
        done += take
    return ids


@lru_cache(maxsize=2)  # a window may span two epochs
def _shuffled(epoch: int, num_samples: int, seed: int) -> Int64:
    return np.argsort(random_words(seed, epoch, num_samples, Stream.SHUFFLE), kind="stable")


def feistel(positions: UInt64, keys: UInt64, num_samples: int) -> Int64:
    """Map positions to ids by a bijection of [0, num_samples) under the keys.

    Balanced Feistel rounds over an even number of bits, repeated for the positions that land outside: the cycle of each
    leads back inside.
    """
    half = np.uint64(max(1, -(-(num_samples - 1).bit_length() // 2)))
    low_bits = (np.uint64(1) << half) - np.uint64(1)

    def rounds(values: UInt64) -> UInt64:
        left, right = values >> half, values & low_bits
        for key in keys:
            # The finaliser of SplitMix64 (Steele et al., 2014): every input bit reaches every output bit.
            mixed = right ^ key
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & low_bits)
        return (left << half) | right

    mapped = rounds(positions)
    outside = np.flatnonzero(mapped >= num_samples)
    while len(outside):
        mapped[outside] = rounds(mapped[outside])
        outside = outside[mapped[outside] >= num_samples]
    return mapped.astype(np.int64)
