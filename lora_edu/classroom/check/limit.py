"""Exercises of the chapter on the limit."""

import math

import numpy as np

from lora_edu.classroom.check.engine import Exercise
from lora_edu.limit import gap_bits
from lora_edu.metrics import bits_per_weight

_CELLS = np.array([0.1, 0.2, 0.4, 0.3])


real_bits = Exercise(
    "real_bits",
    lambda block_size, scale_bits: bits_per_weight(block_size, 4, scale_bits),
    [(64, 32), (64, 16), (32, 32), (128, 8.125), (1, 32)],
    {
        "the scale is counted once a weight; a block shares it": lambda block_size, scale_bits: 4 + scale_bits,
        "the code is missing: four bits of it stay in every weight": lambda block_size, scale_bits: (
            scale_bits / block_size
        ),
        "the fraction is upside down": lambda block_size, scale_bits: 4 + block_size / scale_bits,
        "bytes and bits are mixed up": lambda block_size, scale_bits: 4 + 8 * scale_bits / block_size,
    },
    tolerance=1e-12,
)

code_entropy = Exercise(
    "code_entropy",
    lambda usage: float(-np.sum(usage[usage > 0] * np.log2(usage[usage > 0]))),
    [(_CELLS,), (np.full(16, 1 / 16),), (np.array([0.0, 1.0]),), (np.array([0.5, 0.25, 0.25, 0.0]),)],
    {
        "these are nats: take the logarithm to base 2": lambda usage: float(
            -np.sum(usage[usage > 0] * np.log(usage[usage > 0]))
        ),
        "the sign is turned: logarithms of shares are negative": lambda usage: float(
            np.sum(usage[usage > 0] * np.log2(usage[usage > 0]))
        ),
        "this is the mean of the logarithms; weigh each by its share": lambda usage: float(
            -np.mean(np.log2(usage[usage > 0]))
        ),
        "this is the size of the table; unequal use needs less": lambda usage: math.log2(len(usage)),
    },
    tolerance=1e-9,
)

bits_to_the_limit = Exercise(
    "bits_to_the_limit",
    gap_bits,
    [(4.127, 20.73), (4.5, 20.73), (5.0, 22.14), (4.0, 20.22)],
    {
        "this is the gap in dB; a bit is 6.02 of them": lambda bits, snr: gap_bits(bits, snr) * 20 * math.log10(2),
        "a bit is worth 3.01 dB of power here: error is squared, so it is 6.02": lambda bits, snr: (
            bits - snr / (10 * math.log10(2))
        ),
        "the sign is turned: the limit needs fewer bits than you spend": lambda bits, snr: -gap_bits(bits, snr),
        "this is what the limit would need, not what is left over": lambda bits, snr: snr / (20 * math.log10(2)),
    },
    tolerance=1e-3,
)
