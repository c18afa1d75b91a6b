r"""`adapter_config.json`: what PEFT writes about an adapter, read into our settings and written from them.

    PEFT                 here
    r                    rank
    lora_alpha           alpha
    rank_pattern         rank of the layers whose name matches, r elsewhere
    alpha_pattern        alpha of the layers whose name matches, lora_alpha elsewhere

A pattern is a regular expression that must match the end of the name, at a dot; the first one that matches counts.

Source: PEFT 0.21.2, `LoraConfig` and `utils/other.py: get_pattern_key`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lora_edu.config import LoraConfig
from lora_edu.interop.errors import FileFormatError
from lora_edu.interop.json_file import read_json

CONFIG_NAME = "adapter_config.json"
# Every key that PEFT 0.21.2 writes for LoRA, with the value that means "nothing special".
PLAIN = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": None,
    "target_parameters": None,
    "task_type": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
# Keys whose value changes what the layers compute, in a way that is not read here.
CHANGES_LAYERS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "megatron_config"),
    *("target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora"),
)
# Starts that leave the base weight as it is; every other one belongs to a base that it changed.
KEEPS_BASE = (True, False, None, "gaussian", "eva", "mica", "orthogonal")
REQUIRED = object()
MAX_PATTERNS = 10_000
MAX_REPEATS = 3  # of * + {} in a pattern, and none of a group: more can take longer than the age of the universe


@dataclass(frozen=True)
class PeftConfig:
    r"""What `adapter_config.json` says, as far as it bears on the layers.

    Attributes
    ----------
    lora : LoraConfig
        The settings of a layer that no pattern matches.
    rank_pattern, alpha_pattern : dict of str to number
        Settings of the layers whose names match.
    use_dora, lora_bias : bool
        Whether the layers have magnitudes, or B a bias.
    bias : "none", "lora_only" or "all"
        Which biases of the base were trained too.
    modules_to_save : tuple of str
        Modules that were trained whole.
    settings : dict
        All keys of the file.
    """

    lora: LoraConfig
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_dora: bool
    lora_bias: bool
    bias: str
    modules_to_save: tuple[str, ...]
    settings: Mapping[str, object]

    def for_layer(self, name: str) -> LoraConfig:
        """The settings of the layer called `name`."""
        rank = _by_pattern(self.rank_pattern, name, self.lora.rank)
        return replace(self.lora, rank=rank, alpha=_by_pattern(self.alpha_pattern, name, self.lora.alpha))

    @property
    def unsupported(self) -> dict[str, str]:
        """Key -> why the layers cannot be rebuilt from what is read here."""
        found = {key: "changes what the layers compute" for key in CHANGES_LAYERS if self.settings.get(key)}
        start = self.settings.get("init_lora_weights", True)
        if start not in KEEPS_BASE:
            found["init_lora_weights"] = f"{start!r} changed the base weight that this adapter belongs to"
        return found

    @property
    def notes(self) -> list[str]:
        """What a reader should know beyond the layers."""
        strange = sorted(key for key, value in self.settings.items() if key not in PLAIN and value)
        notes = [f"unknown key {key!r}, ignored as PEFT does" for key in strange]
        if self.bias != "none":
            notes.append(f"biases were trained too ({self.bias})")
        if self.modules_to_save:
            notes.append(f"modules trained whole: {', '.join(self.modules_to_save)}")
        return notes


def read_config(path) -> PeftConfig:
    r"""Read `adapter_config.json`, given itself or its folder.

    Raises
    ------
    FileFormatError
        If it is not JSON, is for another method than LoRA, or a key has a value of the wrong type or range.
    OSError
        If it is missing or must not be read.
    """
    path = Path(path)
    path = path / CONFIG_NAME if path.is_dir() else path
    return config_from_settings(read_json(path), path)


def config_from_settings(settings: dict, path) -> PeftConfig:
    r"""The settings of `adapter_config.json`, checked; `path` stands in the error."""

    def take(key, kinds, default):
        value = settings.get(key, default)
        if value is REQUIRED:
            raise FileFormatError(path, f"the key {key!r} is missing")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise FileFormatError(path, f"{key} must be {expected}, got {value!r}")
        return value

    def take_names(key, *other_kinds):
        value = take(key, (*other_kinds, list, type(None)), None)
        if isinstance(value, list) and not all(isinstance(name, str) and name for name in value):
            raise FileFormatError(path, f"{key} must hold names, got {value!r}")
        return value or ()

    kind = take("peft_type", (str,), REQUIRED)
    if kind.upper() != "LORA":
        raise FileFormatError(path, f"peft_type {kind!r} is not read here, only LORA")
    bias = take("bias", (str,), "none")
    if bias not in ("none", "lora_only", "all"):
        raise FileFormatError(path, f"bias must be none, lora_only or all, got {bias!r}")
    targets = take_names("target_modules", str)
    start = take("init_lora_weights", (bool, str, type(None)), True)
    try:
        lora = LoraConfig(
            rank=take("r", (int,), 8),
            alpha=take("lora_alpha", (int, float), 8),
            dropout=take("lora_dropout", (int, float), 0.0),
            # the tensors say which layers there are; a pattern of the file is kept in `settings` and not run
            target_modules=targets if isinstance(targets, list) else "all-linear",
            fan_in_fan_out=take("fan_in_fan_out", (bool,), False),
            use_rslora=take("use_rslora", (bool,), False),
            init="gaussian" if start == "gaussian" else "kaiming",
        )
    except FileFormatError:
        raise
    except (TypeError, ValueError) as error:
        raise FileFormatError(path, f"{error} (r is the rank, lora_alpha the alpha)") from None
    config = PeftConfig(
        lora,
        _checked_pattern(path, "rank_pattern", take("rank_pattern", (dict, type(None)), None), lora),
        _checked_pattern(path, "alpha_pattern", take("alpha_pattern", (dict, type(None)), None), lora),
        take("use_dora", (bool,), False),
        take("lora_bias", (bool,), False),
        bias,
        tuple(take_names("modules_to_save")),
        settings,
    )
    if config.use_dora and config.lora_bias:
        raise FileFormatError(path, "use_dora and lora_bias exclude each other, in PEFT too")
    return config


def config_json(settings: Mapping[str, object]) -> bytes:
    r"""The file as PEFT 0.21.2 writes it: every key, sorted, two spaces of indent.

    Raises ValueError for a key that PEFT does not have.
    """
    unknown = sorted(set(settings) - set(PLAIN))
    if unknown:
        raise ValueError(f"PEFT has no key {', '.join(map(repr, unknown))} in {CONFIG_NAME}; leave it out")
    return json.dumps({**PLAIN, **settings}, indent=2, sort_keys=True, allow_nan=False).encode("utf-8")


def exact_pattern(name: str) -> str:
    """A pattern that matches the layer called `name` and no other."""
    return "^" + re.escape(name)


def _by_pattern(pattern, name, otherwise):
    for key, value in pattern.items():
        if _compiled(key).match(name):
            return value
    return otherwise


@lru_cache(maxsize=MAX_PATTERNS)
def _compiled(key: str) -> re.Pattern:
    return re.compile(rf"(.*\.)?({key})$")


def _checked_pattern(path, key: str, pattern, lora: LoraConfig) -> dict:
    field = "rank" if key == "rank_pattern" else "alpha"
    checked = {}
    if pattern and len(pattern) > MAX_PATTERNS:
        problem = f"{key} holds {len(pattern):,} patterns, more than {MAX_PATTERNS:,} are not read"
        raise FileFormatError(path, problem)
    for name, value in (pattern or {}).items():
        try:
            _compiled(name)
            checked[name] = getattr(replace(lora, **{field: value}), field)
        except (TypeError, ValueError, re.error, OverflowError, RecursionError) as error:
            raise FileFormatError(path, f"{key}[{name!r}]: {error}") from None
        if re.search(r"\)[*+{]", name) or len(re.findall(r"[*+{]", name)) > MAX_REPEATS:
            raise FileFormatError(path, f"{key}[{name!r}] could take for ever to match; write the layer's name instead")
    return checked


def check_scaling(path, name: str, config: LoraConfig):
    """Refuse a scaling that float32 does not hold: no layer could compute with it."""
    if config.scaling > float(np.finfo(np.float32).max):
        raise FileFormatError(path, f"layer {name!r}: lora_alpha {config.alpha:g} is beyond float32")
