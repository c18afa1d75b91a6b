"""Exercises of the chapter on real files."""

import numpy as np

from lora_edu.classroom.check.engine import Exercise
from lora_edu.config import LoraConfig

_NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.qq_proj", "q_proj", "lm_head", "mlp.v_proj.bias"]


def _selected(names, targets):
    config = LoraConfig(target_modules=targets)
    return [config.selects(name) for name in names]


selected = Exercise(
    "selected",
    _selected,
    [(_NAMES, ["q_proj", "v_proj"]), (_NAMES, ["proj"]), (_NAMES, ["self_attn.q_proj"]), (_NAMES, ["lm_head"])],
    {
        "this asks whether the target occurs anywhere; it must be the name or a dotted suffix": lambda names, targets: [
            any(target in name for target in targets) for name in names
        ],
        "this matches whole names only; a dotted suffix counts too": lambda names, targets: [
            name in targets for name in names
        ],
        "this is endswith without the dot: 'qq_proj' must not match 'q_proj'": lambda names, targets: [
            any(name.endswith(target) for target in targets) for name in names
        ],
        "the last part alone is compared; a target may hold dots itself": lambda names, targets: [
            name.split(".")[-1] in targets for name in names
        ],
    },
)

_rng = np.random.default_rng(9)


def _case(out, width, first, second, scalings):
    shapes = ((first, width), (out, first), (second, width), (out, second))
    return (*(_rng.standard_normal(shape) for shape in shapes), *scalings)


def _sum(a1, b1, a2, b2, s1, s2):
    return s1 * b1 @ a1 + s2 * b2 @ a2


sum_of_updates = Exercise(
    "sum_of_updates",
    _sum,
    [_case(5, 4, 2, 2, (2.0, 0.5)), _case(7, 7, 3, 3, (1.0, 1.0)), _case(4, 6, 1, 1, (0.25, 4.0))],
    {
        "this adds A to A and B to B: the product then has cross terms B₁A₂ and B₂A₁": lambda a1, b1, a2, b2, s1, s2: (
            (np.sqrt(s1) * b1 + np.sqrt(s2) * b2) @ (np.sqrt(s1) * a1 + np.sqrt(s2) * a2)
        ),
        "the scalings are missing": lambda a1, b1, a2, b2, s1, s2: b1 @ a1 + b2 @ a2,
        "only the first scaling is used": lambda a1, b1, a2, b2, s1, s2: s1 * (b1 @ a1 + b2 @ a2),
        "this is their mean; two adapters in use add up": lambda a1, b1, a2, b2, s1, s2: (
            _sum(a1, b1, a2, b2, s1, s2) / 2
        ),
    },
    tolerance=1e-9,
)

adapter_bytes = Exercise(
    "adapter_bytes",
    lambda shapes, rank, bytes_each: sum(rank * (out + width) for out, width in shapes) * bytes_each,
    [([(64, 64), (32, 64)], 4, 4), ([(4096, 4096)] * 64, 16, 2), ([(7, 3)], 1, 4), ([], 8, 4)],
    {
        "these are the bytes of the full updates; A and B are thin": lambda shapes, rank, each: (
            sum(out * width for out, width in shapes) * each
        ),
        "this counts B alone": lambda shapes, rank, each: sum(rank * out for out, width in shapes) * each,
        "this counts A alone": lambda shapes, rank, each: sum(rank * width for out, width in shapes) * each,
        "these are numbers, not bytes": lambda shapes, rank, each: sum(rank * (out + width) for out, width in shapes),
    },
)
