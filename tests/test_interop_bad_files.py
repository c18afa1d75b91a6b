r"""Files that are corrupt, truncated, hostile or of another kind, and the one line each gives; then thousands more."""

import json
import os
import random
import re
import shutil
import struct

import numpy as np
import pytest
from conftest import ROOT

from lora_edu import cli
from lora_edu.interop import FileFormatError, TensorFile, inspect, read_peft, write_tensors
from lora_edu.interop.container import DTYPES, require_safetensors

GOLDEN = ROOT / "tests" / "golden" / "peft"
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


def test_the_tables_are_long_enough_to_mean_something():
    assert len(CONTAINERS) + len(INDICES) + len(CONFIGS) + len(TENSORS) + len(FILES) >= 100


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
    (lambda folder: GOLDEN / "mlp/base.safetensors", "has no adapter_config.json beside it, which says rank and alpha"),
    (lambda folder: GOLDEN / "../nf4_1d_1_bs64.npz", "is a Python pickle"),
]


@pytest.mark.parametrize(("make", "message"), PATHS, ids=[message for _, message in PATHS])
def test_a_bad_path_is_one_line_and_status_2(make, message, tmp_path, capsys):
    if make is make_forbidden and (not hasattr(os, "geteuid") or os.geteuid() == 0):
        pytest.skip("root may read every file")
    if make is make_pipe and not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    assert cli.main(["inspect", str(make(tmp_path))]) == 2
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
