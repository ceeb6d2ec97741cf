"""Philox4x32-10, the counter-based generator of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

Each random number is a function of a key and a counter. There is no state that one draw passes on to the next.
"""

import numpy as np

ROUNDS = 10
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # the paper's M0 and M1 for four 32-bit words
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key in each round: the golden ratio, sqrt(3) - 1


def philox4x32(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Four random words for each counter. Counters and results are lists of four uint64 arrays of 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> high) ^ c1 ^ np.uint64(k0), p1 & mask
        c2, c3 = (p0 >> high) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def uniform(start: int, stop: int, key: np.ndarray) -> np.ndarray:
    """Elements start:stop, in [0, 1), of the stream of `key` (seed low, seed high, step, layer)."""
    seed_low, seed_high, step, layer = (int(word) for word in key)
    block = np.arange(start // 4, -(-stop // 4), dtype=np.uint64)
    high = block >> np.uint64(32)
    low = block & np.uint64(0xFFFFFFFF)
    words = philox4x32([low, high, np.full_like(block, step), np.full_like(block, layer)], (seed_low, seed_high))
    return (np.stack(words, axis=1).reshape(-1)[start % 4 :][: stop - start] >> np.uint64(8)) * 2.0**-24
