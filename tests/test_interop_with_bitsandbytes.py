r"""bitsandbytes itself: it loads what we write bit for bit, we read what it writes. Skipped without it."""

import numpy as np
import pytest
from conftest import ROOT

MISSING = "{} is not installed: golden files of bitsandbytes are compared in test_interop_bitsandbytes.py instead"
torch = pytest.importorskip("torch", reason=MISSING.format("PyTorch"))
bnb = pytest.importorskip("bitsandbytes", reason=MISSING.format("bitsandbytes"))
load_file = pytest.importorskip("safetensors.torch").load_file
save_file = pytest.importorskip("safetensors.torch").save_file

from lora_edu.interop import (  # noqa: E402
    TensorFile,
    Weight4bit,
    quantize_4bit,
    quantize_file,
    read_bitsandbytes,
    write_bitsandbytes,
)
from lora_edu.precision import round_to_bfloat16  # noqa: E402

LLAMA = ROOT / "tests" / "golden" / "peft" / "llama" / "base.safetensors"
DTYPES = ["float32", "float16", "bfloat16"]


def weight_of(dtype, shape=(48, 64), seed=5):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return round_to_bfloat16(weight) if dtype == "bfloat16" else weight.astype(dtype)


def numbers(weight):
    r"""Bytes, but for the sign of zero: FP4's second zero comes out as -0 or +0, by the CPU's kernel."""
    return (np.asarray(weight, np.float32) + np.float32(0)).tobytes()


def loaded_by_bitsandbytes(path, name):
    r"""The weight as bitsandbytes dequantizes it."""
    state = load_file(path)
    stats = {key: tensor for key, tensor in state.items() if key.startswith(name + ".")}
    parameter = bnb.nn.Params4bit.from_prequantized(state[name], stats, device="cpu")
    weight = bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state)
    return weight.float().numpy(), parameter


@pytest.mark.parametrize("storage", ["U8", "F16", "BF16", "F32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_what_numpy_writes_loads_bit_for_bit(kind, double, dtype, storage, tmp_path):
    made = quantize_4bit(weight_of(dtype), kind, 64, double, dtype)
    made = Weight4bit(made.quantized, dtype, storage)
    write_bitsandbytes(tmp_path / "a.safetensors", {"q_proj.weight": made})
    theirs, parameter = loaded_by_bitsandbytes(tmp_path / "a.safetensors", "q_proj.weight")
    assert numbers(theirs) == numbers(made.dequantize())
    assert (parameter.quant_type, parameter.compress_statistics) == (kind, double)
    assert str(parameter.quant_state.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("storage", ["uint8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_what_bitsandbytes_writes_is_read_and_made_bit_for_bit(kind, double, dtype, storage, tmp_path):
    weight = torch.tensor(weight_of(dtype).astype(np.float32)).to(getattr(torch, dtype))
    layer = bnb.nn.Linear4bit(
        64, 48, bias=True, quant_type=kind, compress_statistics=double, quant_storage=getattr(torch, storage)
    )
    layer.weight = bnb.nn.Params4bit(
        weight, quant_type=kind, compress_statistics=double, quant_storage=getattr(torch, storage)
    )
    layer.weight._quantize("cpu")
    save_file(layer.state_dict(), tmp_path / "a.safetensors", {"format": "pt"})
    file = read_bitsandbytes(tmp_path / "a.safetensors")
    theirs = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert numbers(file["weight"]) == numbers(theirs.float().numpy())
    assert (file["bias"] == layer.bias.detach().numpy()).all()
    again = tmp_path / "again.safetensors"
    write_bitsandbytes(again, {"weight": file.weight("weight"), "bias": file["bias"]})
    first, second = TensorFile(tmp_path / "a.safetensors"), TensorFile(again)
    assert sorted(first) == sorted(second)
    for name in first:
        assert first.raw(name).tobytes() == second.raw(name).tobytes(), name
        assert (first.info[name].dtype, first.info[name].shape) == (second.info[name].dtype, second.info[name].shape)
    ours = quantize_4bit(weight_of(dtype), kind, 64, double, dtype)
    assert (ours.quantized.packed == file.weight("weight").quantized.packed).all()


@pytest.mark.parametrize("double", [False, True])
def test_a_quantized_model_file_loads_weight_by_weight(double, tmp_path):
    path = tmp_path / "q.safetensors"
    quantize_file(LLAMA, path, "nf4", 64, double)
    file = read_bitsandbytes(path)
    assert len(file.headers) == 14
    for name in file.headers:
        assert loaded_by_bitsandbytes(path, name)[0].tobytes() == file[name].tobytes()
    state = load_file(path)
    for name in file.plain:
        assert (state[name].numpy() == file[name]).all()
