r"""The settings of an adapter.

    W' = W + scaling · B A        scaling = alpha / rank,  or alpha / √rank with rsLoRA

Sources: Hu et al. 2021, *LoRA* (section 4.1); Kalajdzievski 2023, *A Rank Stabilization Scaling Factor* (rsLoRA).
"""

import json
import math
import re
from dataclasses import asdict, dataclass, fields

from lora_edu.validate import check_integer, check_real

INITS = ("reference", "kaiming", "gaussian")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    r"""Rank, scale and targets of a LoRA adapter; validated when made and by `dataclasses.replace`.

    Parameters
    ----------
    rank : positive int
        Number of rows of A and columns of B.
    alpha : float > 0
        Strength of the update; the update is multiplied by `scaling`.
    dropout : float in [0, 1]
        Share of the adapter's input that is dropped while training; 1 drops all of it.
    target_modules : str or sequence of str
        Which layers are adapted, by PEFT's rule: a sequence matches the exact name or a dotted suffix of it,
        a string is a regular expression that must match the whole name, "all-linear" matches every layer.
    fan_in_fan_out : bool
        The weight is stored (in, out), as GPT-2's Conv1D does, instead of (out, in).
    use_rslora : bool
        scaling = alpha / √rank instead of alpha / rank.
    init : "reference", "kaiming" or "gaussian"
        How A starts: value · √(2/in) with value from `SeededRng` in [-1, 1); U(-1/√in, 1/√in) as PEFT does;
        N(0, 1/rank²). B always starts at zero.

    Raises
    ------
    TypeError, ValueError
        Naming the field, its value and what is allowed.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    init: str = "reference"

    def __post_init__(self):
        object.__setattr__(self, "rank", check_integer("rank", self.rank, minimum=1))
        object.__setattr__(self, "alpha", check_real("alpha", self.alpha))
        object.__setattr__(self, "dropout", check_real("dropout", self.dropout))
        if self.alpha <= 0:
            raise ValueError(f"alpha must be greater than 0, got {self.alpha:g}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must lie in [0, 1], got {self.dropout:g}")
        for name in ("fan_in_fan_out", "use_rslora"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {self.init!r}")
        object.__setattr__(self, "target_modules", _checked_targets(self.target_modules))

    @property
    def scaling(self) -> float:
        r"""The factor before B A: alpha / rank, or alpha / √rank with `use_rslora`."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def selects(self, name: str) -> bool:
        """Whether `target_modules` selects the layer called `name`."""
        targets = self.target_modules
        if isinstance(targets, str):
            return targets.lower() == ALL_LINEAR or re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith("." + target) for target in targets)

    def to_json(self) -> str:
        """The settings as a JSON object with sorted keys; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "LoraConfig":
        """The settings that `to_json` wrote; unknown keys are refused by name."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a JSON text: {error}") from error
        if not isinstance(values, dict):
            raise TypeError(f"the JSON text must hold an object, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown key {', '.join(map(repr, unknown))}; known keys are {', '.join(known)}")
        return cls(**values)


def _checked_targets(targets) -> str | tuple[str, ...]:
    if isinstance(targets, str):
        if not targets:
            raise ValueError("target_modules must not be empty; use 'all-linear' to adapt every layer")
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"target_modules {targets!r} is not a regular expression: {error}") from error
        return targets
    try:
        targets = tuple(targets)
    except TypeError:
        raise TypeError(f"target_modules must be a string or a sequence of names, got {targets!r}") from None
    if not targets:
        raise ValueError("target_modules must not be empty; use 'all-linear' to adapt every layer")
    for target in targets:
        if not isinstance(target, str) or not target:
            raise ValueError(f"target_modules must hold non-empty names, got {target!r}")
    return targets
