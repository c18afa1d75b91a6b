r"""Files of bitsandbytes against those it wrote itself; the memory report; whole files quantized and measured."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lora_edu import NF4, cli, dequantize, quantize, relative_error, snr_db
from lora_edu.blockwise import QuantizedScales, double_quantize
from lora_edu.codebooks import CODEBOOKS, INT4
from lora_edu.interop import (
    FileFormatError,
    TensorFile,
    Weight4bit,
    error_report,
    inspect,
    memory_report,
    quantize_4bit,
    quantize_file,
    read_bitsandbytes,
    read_peft,
    write_bitsandbytes,
    write_tensors,
)
from lora_edu.interop.container_write import Planned, write_in_pieces
from lora_edu.interop.table import by_number
from lora_edu.precision import round_to_bfloat16

GOLDEN = ROOT / "tests" / "golden" / "bitsandbytes"
LLAMA = ROOT / "tests" / "golden" / "peft" / "llama" / "base.safetensors"
CASES = ["nf4_plain", "nf4_nested", "fp4_plain"]
RNG = np.random.default_rng(11)


def golden(case):
    return read_bitsandbytes(GOLDEN / f"{case}.safetensors"), TensorFile(GOLDEN / f"{case}.io.safetensors")


def same_tensors(first, second):
    r"""Names, dtypes, shapes and bytes."""
    assert sorted(first) == sorted(second)
    for name in first:
        assert (first.info[name].dtype, first.info[name].shape) == (second.info[name].dtype, second.info[name].shape)
        assert first.raw(name).tobytes() == second.raw(name).tobytes(), name
    assert first.metadata == second.metadata


@pytest.mark.parametrize("case", CASES)
def test_golden_files_dequantize_bit_for_bit(case):
    file, io = golden(case)
    assert file["weight"].tobytes() == io["dequantized"].tobytes()
    assert list(file) == ["weight", "bias"][: len(file)]
    for name in file.plain:
        assert (file[name] == io["base." + name]).all()
    assert "absmax" not in file and "weight.absmax" not in file
    with pytest.raises(KeyError):
        file["weight.absmax"]


@pytest.mark.parametrize("case", CASES)
def test_a_golden_file_is_written_back_tensor_by_tensor(case, tmp_path):
    file, _ = golden(case)
    weights = {name: file.weight(name) if name in file.headers else file[name] for name in file}
    write_bitsandbytes(tmp_path / "a.safetensors", weights)
    same_tensors(file.file, TensorFile(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("case", CASES)
def test_quantizing_the_golden_weight_gives_the_golden_file(case, tmp_path):
    file, io = golden(case)
    kind, double = case[:3], case.endswith("nested")
    made = quantize_4bit(io["base.weight"], kind, 64, double)
    if double:  # the mean depends on the order of the sum
        exact = quantize_4bit(io["base.weight"], kind).quantized
        assert made.quantized.absmax.offset == pytest.approx(file.headers["weight"].offset, rel=4e-7)
        made = Weight4bit(double_quantize(exact, offset=file.headers["weight"].offset))
    write_bitsandbytes(tmp_path / "a.safetensors", {"weight": made, **{name: file[name] for name in file.plain}})
    same_tensors(file.file, TensorFile(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("storage", ["U8", "I8", "F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("kind", "double"), [("nf4", False), ("fp4", True)])
def test_every_storage_and_dtype_comes_back(storage, dtype, kind, double, tmp_path):
    weight = (0.02 * RNG.standard_normal((24, 40))).astype(np.float32)
    weight = round_to_bfloat16(weight) if dtype == "bfloat16" else weight.astype(dtype)
    made = quantize_4bit(weight, kind, 32, double, dtype)
    made = Weight4bit(made.quantized, dtype, storage)
    write_bitsandbytes(tmp_path / "a.safetensors", {"m.weight": made})
    file = read_bitsandbytes(tmp_path / "a.safetensors")
    assert file.file.info["m.weight"].dtype == storage
    assert file.file.info["m.weight"].nbytes == weight.size // 2
    back = file.weight("m.weight")
    assert (back.dtype, back.storage) == (dtype, storage)
    assert isinstance(back.quantized.absmax, QuantizedScales) == double
    assert file["m.weight"].tobytes() == made.dequantize().tobytes()
    assert file["m.weight"].dtype == weight.dtype
    if dtype == "bfloat16":
        assert (file["m.weight"] == round_to_bfloat16(dequantize(made.quantized))).all()


def test_odd_lengths_and_more_than_two_dimensions_come_back(tmp_path):
    weights = {
        f"w{'x'.join(map(str, shape))}": quantize_4bit(RNG.standard_normal(shape).astype(np.float32))
        for shape in [(7, 33), (1,), (3, 5, 11), (65,)]
    }
    write_bitsandbytes(tmp_path / "a.safetensors", weights)
    file = read_bitsandbytes(tmp_path / "a.safetensors")
    for name, weight in weights.items():
        assert file[name].tobytes() == weight.dequantize().tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": INT4}, "codebook must be nf4 or fp4, as bitsandbytes has them, got int4"),
        ({"nibble_order": "low-first"}, "nibble_order must be 'high-first' in bitsandbytes, got 'low-first'"),
        ({"block_size": 48}, "block_size must be one of 32, 64, 128, 256, 512, 1024, 2048, 4096, got 48"),
        ({"scale_storage": "float16"}, "scales must be float32 or double-quantized in bitsandbytes, got float16"),
    ],
)
def test_what_bitsandbytes_does_not_have_is_refused(change, message):
    with pytest.raises(ValueError) as caught:
        Weight4bit(quantize(np.ones((4, 96), np.float32), **{"nibble_order": "high-first"} | change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "storage", "message"),
    [
        ("float64", "U8", "dtype must be one of float32, float16, bfloat16, got 'float64'"),
        ("float16", "U8", "a float16 weight must be quantized from float16, got float32"),
        ("float32", "F7", "storage 'F7' cannot hold 6 bytes; use 'U8'"),
        ("float32", "F32", "storage 'F32' cannot hold 6 bytes; use 'U8'"),
    ],
)
def test_dtypes_that_do_not_fit_are_refused(dtype, storage, message):
    with pytest.raises(ValueError) as caught:
        Weight4bit(quantize(np.ones(12, np.float32), nibble_order="high-first"), dtype, storage)
    assert str(caught.value) == message


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of nf4, fp4, got 'int4'"):
        quantize_4bit(np.ones(4, np.float32), "int4")
    with pytest.raises(TypeError, match="tensor 'a' must be a Weight4bit, or float, integer or bool, got <U1"):
        write_bitsandbytes(tmp_path / "a.safetensors", {"a": np.array(["x"])})
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_goes_over_a_quantized_base(tmp_path):
    quantize_file(LLAMA, tmp_path / "q.safetensors")
    base = read_bitsandbytes(tmp_path)
    adapter = read_peft(LLAMA.parent / "plain").over(base)
    weights = TensorFile(LLAMA)
    for name in adapter:
        expected = dequantize(quantize(weights[name + ".weight"], nibble_order="high-first"))
        assert (adapter[name].weight == expected).all()


# --- pieces


PLAN = {"a": Planned("F32", (3,), 12), "b": Planned("U8", None, None), "c": Planned("F16", (1,), 2)}
PIECES = [("b", np.arange(5, dtype=np.uint8)), ("c", np.ones(1, np.float16)), ("a", np.ones(3, np.float32))]


def test_pieces_come_in_any_order_and_stand_aligned(tmp_path):
    write_in_pieces(tmp_path / "a.safetensors", PLAN, PIECES, {"made": "here"})
    file = TensorFile(tmp_path)
    assert file.metadata == {"made": "here"}
    assert all((file[name] == array).all() and file[name].shape == array.shape for name, array in PIECES)
    assert [file.info[name].start % size for name, size in (("a", 4), ("c", 2))] == [0, 0]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (PIECES[:2], "tensors that were planned are missing: a"),
        (PIECES[1:], "tensors that were planned are missing: b"),
        ([("a", np.ones(4, np.float32))], "tensor 'a' must have 12 bytes as planned, got 16"),
    ],
)
def test_a_wrong_piece_leaves_the_old_file(pieces, message, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ValueError) as caught:
        write_in_pieces(tmp_path / "a", PLAN, pieces)
    assert str(caught.value) == message
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


# --- the memory report


@pytest.mark.parametrize("case", CASES)
def test_the_parts_and_the_header_add_up_to_the_file(case):
    path = GOLDEN / f"{case}.safetensors"
    report = memory_report(path)
    assert report.bytes == path.stat().st_size == report.header + sum(report.parts.values())
    weight = next(row for row in report.tensors if row.name == "weight")
    size = weight.size
    assert weight.parts["codes"] == size // 2
    assert weight.parts["scales"] == size // 64 * (1 if case == "nf4_nested" else 4)
    assert weight.parts["maps"] == 64 + (1024 if case == "nf4_nested" else 0)
    assert weight.parts.get("second scales", 0) == (8 if case == "nf4_nested" else 0)
    assert weight.bits_per_weight == 8 * weight.bytes / size == report.bits_per_quantized_weight
    assert report.bits_per_weight == 8 * report.bytes / report.size


def test_the_table_of_a_golden_file(capsys):
    assert cli.main(["inspect", str(GOLDEN / "nf4_nested.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[1:] == [
        "model file: 2 tensors, 20,640 weights",
        "13,041 bytes, 576 of them the header; 5.055 bits per weight",
        "nf4: 1 tensors, 99% of the weights, 4.619 bits each",
        "",
        "tensor  format      shape  weights   codes  scales  second scales   maps  settings  unquantized  bits/weight",
        "bias    F32           160      160       -       -              -      -         -          640           32",
        "weight  nf4     160 x 128   20,480  10,240     320              8  1,088       169            -        4.619",
        "all                         20,640  10,240     320              8  1,088       169          640        5.055",
    ]


def test_a_plain_model_file_says_what_it_holds(capsys):
    assert cli.main(["inspect", "--json", str(LLAMA.parent)]) == 0
    found = json.loads(capsys.readouterr().out)
    file = TensorFile(LLAMA)
    assert found["parts"]["unquantized"] == file.nbytes == found["bytes"] - found["header"]
    assert (found["quantized_size"], found["bits_per_quantized_weight"]) == (0, None)
    assert found["size"] == sum(tensor.size for tensor in file.values())
    assert "nothing in it is in 4 bits: 86,848 in F32" in str(memory_report(LLAMA))


def test_the_report_of_an_index_counts_all_shards(tmp_path):
    path = model(tmp_path, shards=True)
    report = memory_report(path)
    assert str(inspect(tmp_path)) == str(inspect(path)) == str(report)
    assert report.bytes == sum(shard.stat().st_size for shard in tmp_path.glob("*.safetensors"))
    assert report.bytes == report.header + sum(report.parts.values())


def test_a_reader_that_goes_away_ends_the_command_quietly():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lora_edu", "inspect", str(LLAMA)]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, "")


def test_empty_tensors_and_empty_files_have_no_bits(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"empty": np.zeros((0, 4), np.float32), "scalar": np.float32(1)})
    rows = {row.name: row for row in inspect(tmp_path).tensors}
    assert (rows["empty"].bits_per_weight, rows["scalar"].bits_per_weight) == (None, 32)
    write_tensors(tmp_path / "a.safetensors", {})
    report = inspect(tmp_path / "a.safetensors")
    assert report.bits_per_weight is None
    assert "nothing in it is in 4 bits: it is empty" in str(report)


def test_names_are_sorted_by_their_numbers():
    names = ["h.10.b", "h.2.b", "h.2.a", "g", "h." + "9" * 5000]
    assert sorted(names, key=by_number) == ["g", "h.2.a", "h.2.b", "h.10.b", "h." + "9" * 5000]


# --- whole files


def model(folder, shards=False):
    r"""A model with everything that is left alone, and three weights that are not."""
    tensors = {
        "embed_tokens.weight": RNG.standard_normal((10, 64)).astype(np.float32),
        "h.2.fc.weight": RNG.standard_normal((48, 64)).astype(np.float32),
        "h.2.fc.bias": RNG.standard_normal(48).astype(np.float32),
        "h.10.fc.weight": round_to_bfloat16(RNG.standard_normal((33, 31)).astype(np.float32)),
        "h.10.gate.weight": RNG.standard_normal((64, 8)).astype(np.float16),
        "h.10.double.weight": RNG.standard_normal((4, 64)),
        "h.10.kernel": np.ones((4, 4), np.float32),
        "h.10.lora_A.weight": np.ones((4, 4), np.float32),
        "ids.weight": np.arange(12).reshape(3, 4),
        "norm.weight": np.ones(64, np.float32),
        "lm_head.weight": np.ones((10, 64), np.float32),
    }
    wide = ["h.10.fc.weight"]
    if not shards:
        write_tensors(folder / "model.safetensors", tensors, {"made": "here"}, wide)
        return folder / "model.safetensors"
    first = dict(list(tensors.items())[:3])
    write_tensors(folder / "model-1.safetensors", first)
    write_tensors(folder / "model-2.safetensors", {k: v for k, v in tensors.items() if k not in first}, bfloat16=wide)
    weight_map = {name: "model-1.safetensors" if name in first else "model-2.safetensors" for name in tensors}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_quantize_writes_linear_weights_in_4_bits_and_copies_the_rest(shards, double, tmp_path, capsys):
    path, out = model(tmp_path, shards), tmp_path / "out" / "q.safetensors"
    out.parent.mkdir()
    arguments = ["quantize", str(path), str(out), "--format", "fp4", "--block-size", "32"]
    assert cli.main([*arguments, *["--double-quant"] * double]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    source, made = TensorFile(path), read_bitsandbytes(out)
    assert made.file.metadata["format"] == "pt"
    assert sorted(made.headers) == ["h.10.fc.weight", "h.10.gate.weight", "h.2.fc.weight"]
    assert sorted(made) == sorted(source)
    for name in made.plain:
        assert made.file.info[name].dtype == source.info[name].dtype
        assert made.file.raw(name).tobytes() == source.raw(name).tobytes()
        assert f"\n{name} " in text
    for name, dtype in zip(sorted(made.headers), ("bfloat16", "float16", "float32"), strict=True):
        expected = quantize_4bit(source[name], "fp4", 32, double, dtype)
        assert made[name].tobytes() == expected.dequantize().tobytes()
    assert [path.name for path in out.parent.iterdir()] == ["q.safetensors"]
    assert "note: rows of h.10.fc.weight, h.10.gate.weight are no multiple of 32: bitsandbytes 0.50.2 reads" in text
    assert "copied as they are, F64 numbers, which bitsandbytes does not quantize: h.10.double.weight\n" in text
    assert "copied as they are, an embedding or the head: embed_tokens.weight, lm_head.weight\n" in text


def test_quantize_leaves_what_it_is_told_to(tmp_path, capsys):
    out = tmp_path / "q.safetensors"
    assert cli.main(["quantize", str(model(tmp_path)), str(out), "--skip", "h.10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["copied"]["h.10.gate.weight"] == "its name holds 'h.10'"
    assert list(read_bitsandbytes(out).headers) == ["h.2.fc.weight"]
    assert found["memory"]["bytes"] == out.stat().st_size
    assert found["source_bytes"] == (tmp_path / "model.safetensors").stat().st_size


def test_quantize_never_replaces_what_it_reads(tmp_path, capsys):
    path = model(tmp_path, shards=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "link.safetensors").hardlink_to(tmp_path / "model-2.safetensors")
    (tmp_path / "soft.safetensors").symlink_to(tmp_path / "model-1.safetensors")
    for name in ("model-1.safetensors", "link.safetensors", "soft.safetensors"):
        assert cli.main(["quantize", str(path), str(tmp_path / name)]) == 2
        assert "is what is read; write to another file" in capsys.readouterr().err
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_an_interrupted_quantize_leaves_no_file(tmp_path, monkeypatch, capsys):
    path, out = model(tmp_path), tmp_path / "q.safetensors"

    def stop(self, done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli._Progress, "__call__", stop)
    assert cli.main(["quantize", str(path), str(out)]) == 130
    assert capsys.readouterr().err == "lora-edu: interrupted\n"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("shards", [False, True])
def test_error_gives_each_weight_in_each_format(shards, tmp_path, capsys):
    path = model(tmp_path, shards)
    arguments = ["error", str(path), "--block-size", "32", "--format", "nf4", "--format", "int4"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    source = TensorFile(path)
    assert list(found["errors"]) == ["h.2.fc.weight", "h.10.double.weight", "h.10.fc.weight", "h.10.gate.weight"]
    weights = {name: source[name].astype(np.float32) for name in found["errors"]}
    for name, formats in found["errors"].items():
        for form, error in formats.items():
            approximation = dequantize(quantize(weights[name], 32, CODEBOOKS[form], "high-first"))
            assert error["relative_error"] == pytest.approx(relative_error(weights[name], approximation))
            assert error["snr_db"] == pytest.approx(snr_db(weights[name], approximation))
    flat = np.concatenate([weight.ravel() for weight in weights.values()])
    parts = [dequantize(quantize(weight, 32, NF4, "high-first")).ravel() for weight in weights.values()]
    assert found["total"]["nf4"]["relative_error"] == pytest.approx(relative_error(flat, np.concatenate(parts)))
    assert found["bits_per_weight"]["nf4"] == pytest.approx(5, abs=0.02)
    assert cli.main(arguments) == 0
    assert "not measured: 2, an embedding or the head" in capsys.readouterr().out


def test_the_error_of_large_weights_is_summed_in_pieces_and_of_zero_is_none(tmp_path):
    large = RNG.standard_normal((600, 900)).astype(np.float32)
    levels = np.tile(NF4.levels, (2, 4))
    tensors = {"large.weight": large, "none.weight": np.zeros((2, 64), np.float32), "exact.weight": levels}
    write_tensors(tmp_path / "a.safetensors", tensors)
    report = error_report(tmp_path, ["nf4"])
    approximation = dequantize(quantize(large, nibble_order="high-first"))
    assert report.errors["large.weight"]["nf4"].relative_error == pytest.approx(relative_error(large, approximation))
    assert report.errors["none.weight"]["nf4"].relative_error is None
    exact = report.errors["exact.weight"]["nf4"]
    assert (exact.relative_error, exact.snr_db) == (0, None)
    json.dumps(report.as_json(), allow_nan=False)
    with pytest.raises(ValueError, match=r"formats must be some of nf4, fp4, .* got \['nf5'\]"):
        error_report(tmp_path, ["nf5"])


def test_a_model_of_4_bit_weights_has_nothing_to_measure_or_to_quantize(tmp_path):
    path = GOLDEN / "nf4_plain.safetensors"
    with pytest.raises(FileFormatError, match="holds no linear weight to measure; they are in 4 bits already"):
        error_report(path)
    with pytest.raises(FileFormatError, match="is quantized already: 'weight' is in 4 bits"):
        quantize_file(path, tmp_path / "a.safetensors")


@pytest.mark.parametrize("command", ["quantize", "error"])
def test_progress_of_the_long_commands(command, tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(cli.sys.stderr, "isatty", lambda: True, raising=False)
    out = [str(tmp_path / "q.safetensors")] if command == "quantize" else []
    assert cli.main([command, str(model(tmp_path)), *out]) == 0
    err = capsys.readouterr().err
    assert err.startswith("\r1/11 tensors\r2/11 tensors" if out else "\r1/4 weights\r2/4 weights")
    assert err.endswith("\r" + " " * 40 + "\r")
