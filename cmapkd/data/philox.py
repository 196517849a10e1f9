"""Random numbers of one sample in one epoch, whatever was drawn before.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a counter-based generator: the stream of a
sample is found by setting the counter.
"""

from __future__ import annotations

import numpy as np


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, index]))


def first_numbers(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The first four numbers that ``generator(seed, epoch, index).random()`` gives, of many samples at once. (n, 4)

    Philox 4x64-10 as numpy has it: making a generator for each sample takes ten times as long.
    """
    one, low = np.ones(len(indices), dtype=np.uint64), np.uint64(0xFFFFFFFF)
    half = np.uint64(32)

    def product(factor: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """High and low words of the 128 bits."""
        a, b = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
        c, d = values & low, values >> half
        right, left = b * c, a * d
        middle = ((a * c) >> half) + (right & low) + (left & low)
        return b * d + (right >> half) + (left >> half) + (middle >> half), np.uint64(factor) * values

    x = [one, 0 * one, 0 * one, indices.astype(np.uint64)]  # numpy counts up before it draws
    keys = [np.uint64(seed) * one, epochs.astype(np.uint64)]
    for _ in range(10):
        (high, low_word), (other_high, other_low) = product(0xD2E7470EE14C6C93, x[0]), product(0xCA5A826395121157, x[2])
        x = [other_high ^ x[1] ^ keys[0], other_low, high ^ x[3] ^ keys[1], low_word]
        keys = [keys[0] + np.uint64(0x9E3779B97F4A7C15), keys[1] + np.uint64(0xBB67AE8584CAA73B)]
    return np.stack([word >> np.uint64(11) for word in x], axis=1) * 2.0**-53  # (n, 4)
