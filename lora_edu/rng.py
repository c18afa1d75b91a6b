r"""`SeededRng`: Marsaglia's xorshift64, so that a weight drawn here equals the reference implementation's bit for bit.

    x ^= x << 13;   x ^= x >> 7;   x ^= x << 17        (64 bits)
    value = float32(x / (2⁶⁴ - 1) · 2 - 1)              in [-1, 1)

Rounding to float32 turns the topmost values into 1 itself, about once in 2²⁶ draws.

Each of the three lines is linear over the bits of x (exclusive or is addition modulo 2), so one step is a 64 × 64
matrix of bits, n steps are its n-th power, and many stretches of the sequence can be computed side by side.

Source: Marsaglia 2003, *Xorshift RNGs*, triple (13, 7, 17).
"""

import numpy as np

from lora_edu.validate import check_integer

LANE_LENGTH = 512  # draws a lane makes: 512 lanes of 512 fill a (64, 4096) matrix


def step(state):
    """The next xorshift64 state, of one uint64 or of an array of them."""
    state = state ^ (state << np.uint64(13))
    state = state ^ (state >> np.uint64(7))
    return state ^ (state << np.uint64(17))


def to_unit(state):
    """float32 values in [-1, 1) of uint64 states."""
    return (np.asarray(state, np.uint64).astype(np.float64) / float(2**64 - 1) * 2 - 1).astype(np.float32)


class SeededRng:
    r"""A reproducible stream of float32 values in [-1, 1).

    Parameters
    ----------
    seed : int below 2⁶⁴
        The first state. A seed below 1 is raised to 1, since a zero state stays zero for ever.
    """

    def __init__(self, seed: int = 0):
        check_integer("seed", seed, minimum=-(2**63))
        if seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        self._state = np.uint64(max(int(seed), 1))

    def uniform(self, shape) -> np.ndarray:
        """The next values of the stream as a float32 array of `shape`, filled row by row."""
        count = _count(shape)
        lanes = _lane_starts(self._state, -(-count // LANE_LENGTH))  # (lanes,)
        states = np.empty((LANE_LENGTH, lanes.size), np.uint64)
        for row in states:
            lanes = row[:] = step(lanes)
        stream = states.T.ravel()[:count]  # lane after lane
        if count:
            self._state = stream[-1]
        return to_unit(stream).reshape(shape)

    def uniform_spec(self, shape) -> np.ndarray:
        """What `uniform` returns, one draw after the other: the definition that the fast form is tested against."""
        values = np.empty(_count(shape), np.float32)
        for i in range(values.size):
            self._state = step(self._state)
            values[i] = to_unit(self._state)
        return values.reshape(shape)


def _count(shape) -> int:
    """How many values an array of `shape` holds; a shape that no array can have is refused."""
    sizes = np.array(shape)
    if (sizes.size and sizes.dtype.kind not in "iu") or (sizes < 0).any():
        raise ValueError(f"shape must be non-negative integers, got {shape!r}")
    return int(np.prod(sizes, dtype=np.int64))


def _lane_starts(state, count: int) -> np.ndarray:
    """The states 0, LANE_LENGTH, 2 · LANE_LENGTH … steps after `state`: (count,) uint64."""
    jump = step(np.uint64(1) << np.arange(64, dtype=np.uint64))  # row k: the image of bit k under one step
    for _ in range(LANE_LENGTH.bit_length() - 1):
        jump = _apply(jump, jump)  # twice as many steps
    lanes = np.array([state], np.uint64)
    while lanes.size < count:
        lanes = np.concatenate([lanes, _apply(jump, lanes)])  # the second half starts where the first ends
        jump = _apply(jump, jump)
    return lanes[:count]


def _apply(matrix, states) -> np.ndarray:
    """matrix · state over the bits, for every state: the sum modulo 2 of the images of its set bits."""
    images = np.zeros_like(states)
    for bit in range(64):
        images ^= matrix[bit] * ((states >> np.uint64(bit)) & np.uint64(1))
    return images
