r"""Files that are corrupt, truncated, hostile or of another kind, and the one line each gives; then thousands more."""

import json
import os
import random
import re
import shutil
import struct
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from conftest import ROOT

from lora_edu import cli
from lora_edu.interop import (
    FileFormatError,
    TensorFile,
    error_report,
    inspect,
    quantize_file,
    read_bitsandbytes,
    read_peft,
    write_tensors,
)
from lora_edu.interop.container import DTYPES, require_safetensors

GOLDEN = ROOT / "tests" / "golden" / "peft"
QUANTIZED = ROOT / "tests" / "golden" / "bitsandbytes"
ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
PREFIX = "base_model.model."
A, B = f"{PREFIX}q_proj.lora_A.weight", f"{PREFIX}q_proj.lora_B.weight"
ONES = np.ones((4, 4), np.float32)


def raw(header, body=bytes(16), length=None):
    r"""A safetensors file from its parts; `header` as bytes or as what JSON is made of."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


# --- containers: bytes of the file -> part of the message

CONTAINERS = {
    "nothing at all": (b"", "is not a safetensors file: it has 0 bytes"),
    "seven bytes": (bytes(7), "is not a safetensors file: it has 7 bytes"),
    "a text": (b"version https://git-lfs.github.com/spec/v1\n", "is truncated or not a safetensors file: it claims a"),
    "a zip archive, as torch.save writes": (b"PK\x03\x04" + bytes(99), "is a Python pickle, which can run any code"),
    "a bare pickle": (b"\x80\x04\x95" + bytes(99), "is a Python pickle, which can run any code"),
    "a header longer than the file": (raw({}, length=5000), "it claims a header of 5,000 bytes and has 26"),
    "a header of 2^63 bytes": (raw({}, length=2**63), "it claims a header of 9,223,372,036,854,775,808 bytes"),
    "a header that is cut": (raw(json.dumps({"a": ENTRY}).encode()[:-4]), "is not JSON"),
    "tensors that are cut": (raw({"a": ENTRY}, bytes(15)), "is truncated or corrupt"),
    "bytes that belong to no tensor": (raw({"a": ENTRY}, bytes(17)), "is truncated or corrupt"),
    "a gap": (raw({"a": ENTRY | {"data_offsets": [4, 20]}}, bytes(20)), "is truncated or corrupt: "),
    "overlapping tensors": (raw({"a": ENTRY, "b": ENTRY}), "is truncated or corrupt: "),
    "offsets in reverse": (raw({"a": ENTRY | {"data_offsets": [16, 0]}}), "is truncated or corrupt: "),
    "a negative offset": (raw({"a": ENTRY | {"data_offsets": [-16, 0]}}), "is truncated or corrupt: "),
    "three offsets": (raw({"a": ENTRY | {"data_offsets": [0, 16, 32]}}), "is truncated or corrupt: "),
    "an offset that is a text": (raw({"a": ENTRY | {"data_offsets": ["0", 16]}}), "is truncated or corrupt: "),
    "a gigabyte in a kilobyte": (
        raw({"a": {"dtype": "F32", "shape": [2**14, 2**14], "data_offsets": [0, 2**30]}}, bytes(900)),
        "is truncated or corrupt: ",
    ),
    "a shape beyond 64 bits": (raw({"a": ENTRY | {"shape": [2**40, 2**40]}}), "is truncated or corrupt: "),
    "a negative shape": (raw({"a": ENTRY | {"shape": [-2, -2]}}), "is truncated or corrupt: "),
    "a shape that is not the offsets'": (raw({"a": ENTRY | {"shape": [2, 3]}}), "is truncated or corrupt: "),
    "a shape of fractions": (raw({"a": ENTRY | {"shape": [2.5, 2]}}), "is truncated or corrupt: "),
    "an unknown dtype": (raw({"a": ENTRY | {"dtype": "F33"}}), "is truncated or corrupt: "),
    "a dtype in lower case": (raw({"a": ENTRY | {"dtype": "f32"}}), "is truncated or corrupt: "),
    "a dtype that is a number": (raw({"a": ENTRY | {"dtype": 32}}), "is truncated or corrupt: "),
    "no dtype": (raw({"a": {"shape": [4], "data_offsets": [0, 16]}}), "is truncated or corrupt: "),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [4]}}), "is truncated or corrupt: "),
    "an entry that is a list": (raw({"a": [1, 2]}), "is truncated or corrupt: "),
    "metadata with a number": (raw({"__metadata__": {"a": 1}, "a": ENTRY}), "is truncated or corrupt: "),
    "metadata that is a list": (raw({"__metadata__": [], "a": ENTRY}), "is truncated or corrupt: "),
    "a header that is a list": (raw([ENTRY]), "must hold a JSON object, got list"),
    "a header that is null": (raw(None), "must hold a JSON object, got NoneType"),
    "a header that is no text": (raw(b'{"\xff": 1}'), "is not JSON: 'utf-8' codec can't decode"),
    "a header of a million brackets": (raw(b'{"a":' + b"[" * 10**6), "is not JSON: "),
    "a number of ten thousand digits": (raw(b'{"a":' + b"9" * 10**4 + b"}"), "is not JSON: "),
    "a name that stands twice": (
        raw(b'{"a":%b,"a":%b}' % ((json.dumps(ENTRY).encode(),) * 2)),
        "the key 'a' stands twice",
    ),
    "a dtype that stands twice": (raw(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "the key 'dtype' stands twice"),
    "NaN in the header": (raw(b'{"a":NaN}'), "NaN is not JSON"),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_a_bad_container_is_one_line(case, tmp_path):
    data, message = CONTAINERS[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileFormatError) as caught:
        TensorFile(path)
    assert_one_line(str(caught.value), message)
    assert str(path) in str(caught.value)


def assert_one_line(text, message):
    assert message in text
    assert text.isprintable()
    assert len(text) < 1500


def test_the_container_that_the_table_spoils_is_right_otherwise(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(raw({"a": ENTRY}))
    assert TensorFile(tmp_path)["a"].shape == (2, 2)


@pytest.mark.parametrize(
    ("entry", "body", "message"),
    [
        ({"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}, 4, "tensor 'a' of shape [1, 1,"),
        (
            {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]},
            0,
            "tensor 'a' of shape [0, 9223372036854775808]",
        ),
    ],
)
def test_a_tensor_that_numpy_cannot_hold_is_refused_when_it_is_read(entry, body, message, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(raw({"a": entry}, bytes(body)))
    with pytest.raises(FileFormatError) as caught:
        TensorFile(tmp_path)["a"]
    assert_one_line(str(caught.value), message)


def test_a_dtype_that_numpy_lacks_is_named_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.delitem(DTYPES, "F32")  # like the 8-bit floats, which not every version of safetensors knows
    (tmp_path / "a.safetensors").write_bytes(raw({"a": ENTRY}))
    with pytest.raises(FileFormatError, match="tensor 'a' is F32, which is not read here"):
        TensorFile(tmp_path)["a"]


# --- shards: the index -> part of the message

INDICES = {
    "an absolute shard": (
        {"weight_map": {"a": "/etc/a.safetensors"}},
        "is not the name of a .safetensors file beside it",
    ),
    "a shard above": ({"weight_map": {"a": "../a.safetensors"}}, "shard '../a.safetensors' is not the name of"),
    "a shard in a folder": ({"weight_map": {"a": "b/a.safetensors"}}, "shard 'b/a.safetensors' is not the name of"),
    "a shard above, in another system": ({"weight_map": {"a": "..\\a.safetensors"}}, "is not the name of"),
    "a shard on a drive": ({"weight_map": {"a": "c:a.safetensors"}}, "shard 'c:a.safetensors' is not the name of"),
    "a shard that is a pickle": ({"weight_map": {"a": "a.bin"}}, "shard 'a.bin' is not the name of"),
    "a shard that is a number": ({"weight_map": {"a": 7}}, "shard 7 is not the name of"),
    "a shard that is missing": ({"weight_map": {"a": "b.safetensors"}}, "No such file or directory"),
    "a shard without the tensor": ({"weight_map": {"b": "a.safetensors"}}, "a.safetensors does not hold 'b', as the"),
    "no weight_map": ({"metadata": {}}, "has no weight_map that says which shard"),
    "an empty weight_map": ({"weight_map": {}}, "has no weight_map that says which shard"),
    "a weight_map that is a list": ({"weight_map": ["a"]}, "has no weight_map that says which shard"),
    "an index that is a list": ([], "must hold a JSON object, got list"),
}


@pytest.mark.parametrize("case", INDICES)
def test_a_bad_index_is_one_line(case, tmp_path):
    index, message = INDICES[case]
    write_tensors(tmp_path / "a.safetensors", {"a": np.ones(2)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((FileFormatError, OSError)) as caught:
        TensorFile(tmp_path)
    assert_one_line(str(caught.value), message)


# --- adapters: a change of the config, or of the tensors -> part of the message

CONFIGS = {
    "no peft_type": ({"peft_type": ...}, "the key 'peft_type' is missing"),
    "another method": ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not read here, only LORA"),
    "a peft_type that is null": ({"peft_type": None}, "peft_type must be str, got None"),
    "a rank that is a text": ({"r": "4"}, "r must be int, got '4'"),
    "a rank that is a fraction": ({"r": 4.0}, "r must be int, got 4.0"),
    "a rank that is true": ({"r": True}, "r must be int, got True"),
    "a rank of zero": ({"r": 0}, "rank must be at least 1, got 0 (r is the rank"),
    "a rank that the tensors do not have": ({"r": 5}, "layer 'q_proj': adapter_config.json says rank 5, lora_A has 4"),
    "no rank": ({"r": ...}, "adapter_config.json says rank 8, lora_A has 4 rows"),
    "a negative alpha": ({"lora_alpha": -8}, "alpha must be greater than 0, got -8"),
    "an alpha that is a text": ({"lora_alpha": "8"}, "lora_alpha must be int or float, got '8'"),
    "an alpha that is null": ({"lora_alpha": None}, "lora_alpha must be int or float, got None"),
    "an alpha beyond float32": ({"lora_alpha": 1e300}, "layer 'q_proj': lora_alpha 1e+300 is beyond float32"),
    "an alpha of a thousand digits": ({"lora_alpha": 10**999}, "alpha must fit into a float"),
    "a dropout of two": ({"lora_dropout": 2}, "dropout must lie in [0, 1], got 2"),
    "a switch that is a number": ({"use_rslora": 1}, "use_rslora must be bool, got 1"),
    "a switch that is a text": ({"fan_in_fan_out": "false"}, "fan_in_fan_out must be bool, got 'false'"),
    "targets that are a number": ({"target_modules": 3}, "target_modules must be str or list or null, got 3"),
    "targets that are numbers": ({"target_modules": [1]}, "target_modules must hold names, got [1]"),
    "an unknown bias": ({"bias": "some"}, "bias must be none, lora_only or all, got 'some'"),
    "modules that are a text": ({"modules_to_save": "fc"}, "modules_to_save must be list or null, got 'fc'"),
    "modules that are numbers": ({"modules_to_save": [1]}, "modules_to_save must hold names, got [1]"),
    "a start that is a list": ({"init_lora_weights": []}, "init_lora_weights must be bool or str or null, got []"),
    "a pattern that is a list": ({"rank_pattern": []}, "rank_pattern must be dict or null, got []"),
    "a pattern of texts": ({"rank_pattern": {"q": "4"}}, "rank_pattern['q']: rank must be an integer, got '4'"),
    "a pattern of zeros": ({"alpha_pattern": {"q": 0}}, "alpha_pattern['q']: alpha must be greater than 0, got 0"),
    "a pattern that is none": ({"rank_pattern": {"(": 4}}, "rank_pattern['(']: missing ), unterminated subpattern"),
    "a pattern without end": ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern['(a+)+'] could take for ever to match"),
    "ten thousand patterns and one": (
        {"rank_pattern": {f"layer{i}": 4 for i in range(10_001)}},
        "rank_pattern holds 10,001 patterns, more than 10,000 are not read",
    ),
    "a pattern against the tensors": (
        {"rank_pattern": {"v_proj": 2}},
        "layer 'v_proj': adapter_config.json says rank 2",
    ),
    "magnitudes that are not there": ({"use_dora": True}, "use_dora is true, but there is no lora_magnitude_vector"),
    "biases that are not there": ({"lora_bias": True}, "lora_bias is true, but there is no lora_B.bias"),
    "two that exclude each other": ({"use_dora": True, "lora_bias": True}, "use_dora and lora_bias exclude each other"),
}
TENSORS = {
    "A without B": ({B: ...}, "layer 'q_proj': has no lora_B"),
    "B without A": ({A: ...}, "layer 'q_proj': has no lora_A"),
    "A and B of different rank": ({B: np.ones((32, 3), np.float32)}, "lora_A [4, 16] and lora_B [32, 3] do not fit"),
    "A and B exchanged": ({A: np.ones((16, 4), np.float32)}, "lora_A [16, 4] and lora_B [32, 4] do not fit"),
    "a vector for A": ({A: np.ones(4, np.float32)}, "layer 'q_proj': lora_a has shape [4]"),
    "an empty A": ({A: np.ones((4, 0), np.float32)}, "layer 'q_proj': lora_a has shape [4, 0]"),
    "an A of integers": ({A: np.ones((4, 16), np.int32)}, "lora_a is I32, it must be one of F64, F32, F16, BF16"),
    "NaN": ({A: np.full((4, 16), np.nan, np.float32)}, f"{A} must be finite, but {A}[0, 0] = nan"),
    "infinity": ({B: np.full((32, 4), -np.inf, np.float16)}, f"{B} must be finite, but {B}[0, 0] = -inf"),
    "a number beyond float32": ({B: np.full((32, 4), 1e200)}, f"{B} in float32 must be finite"),
    "a magnitude that nothing asks for": (
        {f"{PREFIX}q_proj.lora_magnitude_vector": np.ones(32, np.float32)},
        "use_dora is false, but there is a lora_magnitude_vector",
    ),
    "two kinds of pair": (
        {f"{PREFIX}q_proj.lora_embedding_A": ONES},
        "layer 'q_proj': has the pair of a linear layer and that of an embedding",
    ),
    "an embedding without B": (
        {f"{PREFIX}q_proj.v_proj.lora_embedding_A": ONES},
        "layer 'q_proj.v_proj': has no lora_B",
    ),
}
FILES = {
    "no config": ("adapter_config.json", None, "has no adapter_config.json; it is no PEFT adapter"),
    "no tensors": ("adapter_model.safetensors", None, "has no adapter_model.safetensors"),
    "an empty config": ("adapter_config.json", b"", "is not JSON: Expecting value"),
    "a config that is cut": ("adapter_config.json", b'{"peft_type": "LOR', "is not JSON: Unterminated string"),
    "a config that is a list": ("adapter_config.json", b"[]", "must hold a JSON object, got list"),
    "a config with NaN": ("adapter_config.json", b'{"lora_alpha": NaN}', "NaN is not JSON"),
    "a config with a key twice": ("adapter_config.json", b'{"r": 4, "r": 5}', "the key 'r' stands twice"),
    "a config in UTF-16": ("adapter_config.json", '{"r": 4}'.encode("utf-16"), "is not JSON: 'utf-8' codec"),
    "no LoRA tensors": ("adapter_model.safetensors", raw({}, b""), "holds no LoRA tensors"),
}


def spoiled(folder, config=(), tensors=()):
    shutil.copytree(GOLDEN / "mlp/plain", folder)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text()) | dict(config)
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
    if tensors:
        changed = dict(TensorFile(folder)) | dict(tensors)
        write_tensors(folder / "adapter_model.safetensors", {k: v for k, v in changed.items() if v is not ...})
    return folder


@pytest.mark.parametrize("case", [*CONFIGS, *TENSORS, *FILES])
def test_a_bad_adapter_is_one_line_and_status_2(case, tmp_path, capsys):
    folder = tmp_path / "adapter"
    if case in FILES:
        name, data, message = FILES[case]
        spoiled(folder)
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
    elif case in CONFIGS:
        spoil, message = CONFIGS[case]
        spoiled(folder, config=spoil)
    else:
        spoil, message = TENSORS[case]
        spoiled(folder, tensors=spoil)
    with pytest.raises(FileFormatError) as caught:
        inspect(folder)
    assert_one_line(str(caught.value), message)
    assert cli.main(["inspect", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"lora-edu: {caught.value}\n")


# --- 4-bit weights: a change of the settings, or of the tensors, of a double-quantized one -> part of the message

STATE = "weight.quant_state.bitsandbytes__nf4"
SETTINGS = {
    "no block size": (
        {"blocksize": ...},
        "its quant_state must hold quant_type, blocksize, dtype, shape, nested",
    ),
    "one key too many": ({"extra": 1}, "its quant_state must hold quant_type, blocksize, dtype, shape, nested"),
    "a block size that is a text": ({"blocksize": "64"}, "blocksize has the wrong type: '64'"),
    "a block size that is true": ({"blocksize": True}, "blocksize has the wrong type: True"),
    "a block size of zero": (
        {"blocksize": 0},
        "blocksize must be one of 32, 64, 128, 256, 512, 1024, 2048, 4096, got 0",
    ),
    "a block size that is not its own": ({"blocksize": 128}, "'weight.absmax' must be U8 [160], got U8 [320]"),
    "a format that is not its own": ({"quant_type": "fp4"}, "is called nf4 and says quant_type 'fp4'"),
    "a format that is null": ({"quant_type": None}, "quant_type has the wrong type: None"),
    "a dtype of double": ({"dtype": "float64"}, "dtype must be one of float32, float16, bfloat16, got 'float64'"),
    "a dtype that is code": ({"dtype": "__import__('os')"}, "dtype must be one of float32, float16, bfloat16, got"),
    "a shape that is a number": ({"shape": 20480}, "shape has the wrong type: 20480"),
    "a shape of nothing": ({"shape": []}, "shape must be 1 to 8 positive integers, got []"),
    "a shape of nine": ({"shape": [1] * 8 + [20480]}, "shape must be 1 to 8 positive integers, got [1, 1"),
    "a shape of zero": ({"shape": [160, 0]}, "shape must be 1 to 8 positive integers, got [160, 0]"),
    "a shape below zero": ({"shape": [-160, -128]}, "shape must be 1 to 8 positive integers, got [-160, -128]"),
    "a shape of fractions": ({"shape": [160.0, 128]}, "shape must be 1 to 8 positive integers, got [160.0, 128]"),
    "a shape beyond the codes": ({"shape": [161, 128]}, "needs 10,304 bytes of codes, got 10,240 of U8"),
    "a shape beyond 64 bits": ({"shape": [2**40, 2**40]}, "bytes of codes, got 10,240 of U8"),
    "scales in other blocks": ({"nested_blocksize": 64}, "nested_blocksize must be 256, got 64"),
    "scales of scales in half": ({"nested_dtype": "float16"}, "nested_dtype must be 'float32', got 'float16'"),
    "an offset that is a text": ({"nested_offset": "0"}, "nested_offset has the wrong type: '0'"),
    "an offset beyond float32": ({"nested_offset": 1e39}, "nested_offset must be a finite float32, got 1e+39"),
    "no offset": (
        {"nested_offset": ...},
        "its quant_state must hold quant_type, blocksize, dtype, shape, nested",
    ),
}
QUANTIZED_TENSORS = {
    "no codes": ({"weight": ...}, "'weight' is missing"),
    "codes that are cut": ({"weight": np.zeros((5000, 1), np.uint8)}, "needs 10,240 bytes of codes, got 5,000 of U8"),
    "no scales": ({"weight.absmax": ...}, "'weight.absmax' is missing"),
    "scales that are cut": ({"weight.absmax": np.zeros(319, np.uint8)}, "must be U8 [320], got U8 [319]"),
    "scales in float": ({"weight.absmax": np.zeros(320, np.float32)}, "must be U8 [320], got F32 [320]"),
    "no map": ({"weight.quant_map": ...}, "'weight.quant_map' is missing"),
    "a map of fifteen": ({"weight.quant_map": np.zeros(15, np.float32)}, "must be F32 [16], got F32 [15]"),
    "no second scales": (
        {"weight.nested_absmax": ...},
        "its quant_state must hold quant_type, blocksize, dtype",
    ),
    "three second scales": ({"weight.nested_absmax": np.ones(3, np.float32)}, "must be F32 [2], got F32 [3]"),
    "no second map": ({"weight.nested_quant_map": ...}, "'weight.nested_quant_map' is missing"),
    "no settings": ({STATE: ...}, "belongs to a 4-bit weight, but 'weight.quant_state' is not there"),
    "empty settings": ({STATE: np.zeros(0, np.uint8)}, "'weight.quant_state.bitsandbytes__nf4': is not JSON"),
    "settings that are no text": ({STATE: np.full(9, 255, np.uint8)}, "__nf4': is not JSON: 'utf-8' codec can't"),
    "settings that are a list": ({STATE: np.frombuffer(b"[1]", np.uint8)}, "must hold a JSON object, got list"),
    "settings that say it twice": (
        {STATE: np.frombuffer(b'{"shape":[1],"shape":[2]}', np.uint8)},
        "the key 'shape' stands twice",
    ),
    "settings in float": ({STATE: np.zeros(9, np.float32)}, "its quant_state must be at most 10,000 bytes of U8"),
    "settings without end": ({STATE: np.full(10_001, 32, np.uint8)}, "must be at most 10,000 bytes of U8"),
    "settings of two kinds": (
        {"weight.quant_state.bitsandbytes__fp4": np.zeros(1, np.uint8)},
        "is called fp4 and says quant_type 'nf4'",
    ),
    "a third kind": (
        {STATE: ..., "weight.quant_state.bitsandbytes__af4": np.zeros(1, np.uint8)},
        "its format 'af4' is not read here, only nf4 and fp4",
    ),
}
# these are seen when the weight is read: `inspect` reads no numbers
NUMBERS = {
    "NaN among the levels": ({"weight.quant_map": np.full(16, np.nan, np.float32)}, "quant_map[0] = nan"),
    "other levels": ({"weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32)}, "does not hold the levels that"),
    "infinite second scales": ({"weight.nested_absmax": np.full(2, np.inf, np.float32)}, "nested_absmax[0] = inf"),
    "another second map": ({"weight.nested_quant_map": np.ones(256, np.float32)}, "does not hold the levels that"),
    "scales beyond float32": (
        {"weight.nested_absmax": np.full(2, 3e38, np.float32), "offset": 3e38},
        "4-bit weight 'weight': scale inf is beyond float32",
    ),
}


def spoiled_4bit(path, settings=(), tensors=()):
    file, tensors = TensorFile(QUANTIZED / "nf4_nested.safetensors"), dict(tensors)
    offset = {"nested_offset": tensors.pop("offset")} if "offset" in tensors else {}
    state = json.loads(file.raw(STATE).tobytes()) | dict(settings) | offset
    state = json.dumps({key: value for key, value in state.items() if value is not ...}).encode()
    changed = dict(file) | {STATE: np.frombuffer(state, np.uint8)}
    if "weight.quant_state.bitsandbytes__fp4" in tensors:
        tensors["weight.quant_state.bitsandbytes__fp4"] = changed[STATE]
    write_tensors(path, {name: tensor for name, tensor in (changed | tensors).items() if tensor is not ...})
    return path


@pytest.mark.parametrize("case", [*SETTINGS, *QUANTIZED_TENSORS])
def test_a_bad_4_bit_weight_is_one_line_and_status_2_in_every_command(case, tmp_path, capsys):
    change, message = (SETTINGS | QUANTIZED_TENSORS)[case]
    kind = "settings" if case in SETTINGS else "tensors"
    path = spoiled_4bit(tmp_path / "a.safetensors", **{kind: change})
    with pytest.raises(FileFormatError) as caught:
        read_bitsandbytes(path)
    assert_one_line(str(caught.value), message)
    for command in (["inspect"], ["error"], ["quantize", str(tmp_path / "b.safetensors")]):
        assert cli.main([command[0], str(path), *command[1:]]) == 2
        assert capsys.readouterr() == ("", f"lora-edu: {caught.value}\n")
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("case", NUMBERS)
def test_bad_numbers_of_a_4_bit_weight_are_one_line_when_it_is_read(case, tmp_path):
    change, message = NUMBERS[case]
    file = read_bitsandbytes(spoiled_4bit(tmp_path / "a.safetensors", tensors=change))
    with pytest.raises(FileFormatError) as caught, np.errstate(all="raise", under="ignore"):
        file["weight"]
    assert_one_line(str(caught.value), message)


def test_the_4_bit_weight_that_the_tables_spoil_is_right_otherwise(tmp_path):
    file = read_bitsandbytes(spoiled_4bit(tmp_path / "a.safetensors"))
    assert file["weight"].tobytes() == read_bitsandbytes(QUANTIZED / "nf4_nested.safetensors")["weight"].tobytes()


@pytest.mark.parametrize("case", [*CONTAINERS, *INDICES])
def test_a_bad_model_file_is_one_line_and_status_2_in_every_command(case, tmp_path, capsys):
    if case in CONTAINERS:
        data, message = CONTAINERS[case]
        (tmp_path / "a.safetensors").write_bytes(data)
    else:
        index, message = INDICES[case]
        write_tensors(tmp_path / "a.safetensors", {"a": np.ones(2)})
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    before = sorted(file.name for file in tmp_path.iterdir())
    for command in (["inspect"], ["error"], ["quantize", str(tmp_path / "b.safetensors")]):
        assert cli.main([command[0], str(tmp_path), *command[1:]]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert_one_line(err[:-1], message)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.full((2, 64), np.nan, np.float32), "w.weight must be finite, but w.weight[0, 0] = nan"),
        (np.full((2, 64), np.inf, np.float16), "w.weight must be finite, but w.weight[0, 0] = inf"),
        (np.full((2, 64), 1e200), "'w.weight' holds a number beyond float32"),
        (np.ones(64, np.float32), "holds no linear weight to measure"),
    ],
)
def test_weights_that_cannot_be_quantized_are_one_line_and_leave_no_file(tensor, message, tmp_path, capsys):
    write_tensors(tmp_path / "a.safetensors", {"w.weight": tensor})
    assert cli.main(["error", str(tmp_path)]) == 2
    assert_one_line(capsys.readouterr().err[:-1], message)
    assert cli.main(["quantize", str(tmp_path), str(tmp_path / "b.safetensors")]) == 2
    said = message if tensor.ndim == 2 and tensor.dtype != np.float64 else "holds no linear weight to quantize"
    assert_one_line(capsys.readouterr().err[:-1], said)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "is a folder; name the file to write"),
        ("b.bin", "must end in .safetensors"),
        ("none/b.safetensors", "No such file or directory"),
    ],
)
def test_a_bad_target_is_one_line_and_status_2(target, message, tmp_path, capsys):
    assert cli.main(["quantize", str(GOLDEN / "llama/base.safetensors"), str(tmp_path / target)]) == 2
    assert_one_line(capsys.readouterr().err[:-1], message)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_larger_than_memory_is_one_line_and_status_2(tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise MemoryError("Unable to allocate 8.00 TiB")

    monkeypatch.setattr(np, "fromfile", full)
    for command in (["error"], ["quantize", str(tmp_path / "b.safetensors")]):
        assert cli.main([command[0], str(GOLDEN / "llama/base.safetensors"), *command[1:]]) == 2
        assert capsys.readouterr() == ("", "lora-edu: a tensor is larger than memory: Unable to allocate 8.00 TiB\n")
    assert list(tmp_path.iterdir()) == []


def test_the_tables_are_long_enough_to_mean_something():
    adapters = len(CONTAINERS) + len(INDICES) + len(CONFIGS) + len(TENSORS) + len(FILES)
    assert adapters >= 100
    assert len(SETTINGS) + len(QUANTIZED_TENSORS) + len(NUMBERS) >= 45


# --- paths


def make_nothing(folder):
    return folder / "nothing"


def make_empty_folder(folder):
    return folder


def make_pickle(name):
    def make(folder):
        path = folder / name
        path.write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
        return path

    return make


def make_pickle_folder(folder):
    make_pickle("adapter_model.bin")(folder)
    shutil.copy(GOLDEN / "mlp/plain/adapter_config.json", folder)
    return folder


def make_folder_for_a_file(folder):
    shutil.copy(GOLDEN / "mlp/plain/adapter_config.json", folder)
    (folder / "adapter_model.safetensors").mkdir()
    return folder


def make_folder_for_the_config(folder):
    shutil.copy(GOLDEN / "mlp/plain/adapter_model.safetensors", folder)
    (folder / "adapter_config.json").mkdir()
    return folder / "adapter_model.safetensors"


def make_lone_tensors(folder):
    shutil.copy(GOLDEN / "mlp/plain/adapter_model.safetensors", folder / "a.safetensors")
    return folder / "a.safetensors"


def make_pipe(folder):
    os.mkfifo(folder / "a.safetensors")
    return folder / "a.safetensors"


def make_named_adapters(folder):
    shutil.copytree(GOLDEN / "mlp/plain", folder / "french")
    return folder


def make_forbidden(folder):
    path = spoiled(folder / "adapter")
    (path / "adapter_model.safetensors").chmod(0)
    return path


@contextmanager
def bound_by_permissions():
    r"""As somebody whom permissions bind: root, who may read every file, becomes nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


PATHS = [
    (make_nothing, "No such file or directory"),
    (make_empty_folder, "has no adapter_config.json; it is no PEFT adapter"),
    (make_pickle("adapter_model.bin"), "is a Python pickle, which can run any code when it is opened"),
    (make_pickle("model.pt"), "convert it where torch is installed"),
    (make_pickle("model.ckpt"), "is a Python pickle"),
    (make_pickle_folder, "adapter_model.bin: is a Python pickle"),
    (make_folder_for_a_file, "adapter_model.safetensors: this folder holds 0 safetensors files and no index"),
    (make_folder_for_the_config, "has no adapter_config.json beside it"),
    (make_pipe, "is not a regular file"),
    (make_named_adapters, "has no adapter_config.json; adapters are in its folders french"),
    (make_forbidden, "Permission denied"),
    (make_lone_tensors, "has no adapter_config.json beside it, which says rank and alpha"),
    (lambda folder: GOLDEN / "../nf4_1d_1_bs64.npz", "is an archive of NumPy, not a safetensors file; convert it"),
]


@pytest.mark.parametrize(("make", "message"), PATHS, ids=[message for _, message in PATHS])
def test_a_bad_path_is_one_line_and_status_2(make, message, tmp_path, capsys):
    if make is make_forbidden and not hasattr(os, "geteuid"):
        pytest.skip("this system has no such permissions")
    if make is make_pipe and not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    path = str(make(tmp_path))
    require_safetensors()  # nobody may not be allowed to import it
    with bound_by_permissions() if make is make_forbidden else nullcontext():
        assert cli.main(["inspect", path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert_one_line(err[:-1], message)


# --- mutations


def mutated(data: bytes, rng: random.Random) -> bytes:
    r"""One to three random changes; half of them in the first kilobyte, where the header stands, half only of bits."""
    data = bytearray(data)
    kinds = rng.choice([2, 6])
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 1024))
        kind = rng.randrange(kinds)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randint(1, 30)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 10))
        elif kind == 4:
            data[at:at] = data[at : at + rng.randint(1, 60)]
        else:
            data[at : at + 1] = rng.choice([b"9", b"-", b'"', b"}", b"[", b"null", b"1e999", b"\\ud800", b"\x1b[2J"])
    return bytes(data)


def test_two_thousand_mutations_end_in_a_clean_result_or_in_our_own_error(tmp_path):
    require_safetensors()
    rng = random.Random(20240607)
    cases = ["mlp/plain", "mlp/patterns", "mlp/dora", "gpt2/c_attn"]
    base = {case: TensorFile(GOLDEN / case.split("/")[0] / "base.safetensors") for case in cases}
    good = {
        (case, name): (GOLDEN / case / name).read_bytes()
        for case in cases
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    clean = refused = 0
    for _ in range(2000):
        case = rng.choice(cases)
        spoilt = rng.choice(["adapter_config.json", "adapter_model.safetensors"])
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            data = good[case, name]
            (tmp_path / name).write_bytes(mutated(data, rng) if name == spoilt else data)
        try:
            found = inspect(tmp_path)
            assert str(found).replace("\n", "").isprintable()
            json.dumps(found.as_json(), allow_nan=False)
            adapter = read_peft(tmp_path)
            if not adapter.unsupported:
                adapter.over(base[case]).merge_all()
            clean += 1
        except FileFormatError as error:
            assert str(error).isprintable()
            refused += 1
        except (KeyError, ValueError) as error:  # another name or orientation, so the base does not fit
            assert re.match(r"\W*(the base has no weight|layer .* needs a base weight of shape)", str(error))
            refused += 1
    assert clean > 250
    assert refused > 500


def test_a_thousand_mutated_models_end_in_a_clean_result_or_in_our_own_error(tmp_path):
    require_safetensors()
    rng = random.Random(20261125)
    good = [(QUANTIZED / f"{case}.safetensors").read_bytes() for case in ("nf4_plain", "nf4_nested", "fp4_plain")]
    good.append((GOLDEN / "mlp/base.safetensors").read_bytes())
    path, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    clean = refused = 0
    for _ in range(1000):
        path.write_bytes(mutated(rng.choice(good), rng))
        for work in (inspect, read_all, error_report, lambda path: quantize_file(path, target)):
            try:
                with np.errstate(over="ignore"):
                    found = work(path)
                assert str(found).replace("\n", "").isprintable()
                if hasattr(found, "as_json"):
                    json.dumps(found.as_json(), allow_nan=False)
                if target.exists():
                    read_all(target)
                    target.unlink()
                clean += 1
            except FileFormatError as error:
                assert str(error).isprintable()
                assert not target.exists()
                refused += 1
    assert clean > 500
    assert refused > 1000
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def read_all(path):
    file = read_bitsandbytes(path)
    for name in file.headers:
        assert np.isfinite(file[name]).all()
    for name in file.plain:
        file[name]
    return file
