r"""safetensors files: every dtype, shards, atomic writes; bad ones are in test_interop_bad_files.py."""

import json

import numpy as np
import pytest

from lora_edu.files import write_atomically
from lora_edu.interop import FileFormatError, TensorFile, write_tensors
from lora_edu.interop.container import DTYPES, require_safetensors, widen_bfloat16
from lora_edu.interop.errors import printable
from lora_edu.precision import round_to_bfloat16

TENSORS = {
    **{np.dtype(d).name: np.arange(6).reshape(2, 3).astype(d) for d in ("f8", "f4", "f2", "i8", "i4", "i2", "i1")},
    **{np.dtype(d).name: np.arange(6).reshape(2, 3).astype(d) for d in ("u8", "u4", "u2", "u1", "?")},
    "scalar": np.float32(3),
    "empty": np.zeros((0, 5), np.float32),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "big-endian": np.arange(3, dtype=">f4"),
    "ﬀ Δ": np.ones(1, np.float32),
}


def test_every_dtype_comes_back(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"made": "here"})
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.metadata == {"made": "here"}
    assert sorted(file) == sorted(TENSORS)
    assert file.nbytes == sum(np.asarray(tensor).nbytes for tensor in TENSORS.values())
    for name, tensor in TENSORS.items():
        back = file[name]
        assert back.shape == np.shape(tensor) == file.info[name].shape
        assert back.dtype == np.asarray(tensor).dtype.newbyteorder("=")
        assert (back == tensor).all()
        back[...] = 0  # an array of its own


def test_the_library_reads_the_same(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    loaded = require_safetensors("numpy").load_file(tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    assert all((file[name] == loaded[name]).all() and file[name].dtype == loaded[name].dtype for name in loaded)


def test_every_bfloat16_is_widened_exactly_and_written_back(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16)
    wide = widen_bfloat16(bits)
    finite = wide[np.isfinite(wide)]
    assert (round_to_bfloat16(finite).view(np.uint32) == finite.view(np.uint32)).all()
    tensors = {"wide": finite, "other": np.arange(3, dtype=np.uint8), "double": np.ones(2)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt"}, bfloat16=["wide"])
    file = TensorFile(tmp_path / "a.safetensors")
    assert (file.info["wide"].dtype, file.info["wide"].nbytes) == ("BF16", 2 * finite.size)
    assert file["wide"].tobytes() == finite.tobytes()
    assert (file["other"] == tensors["other"]).all()
    assert all(info.start % 8 == 0 for name, info in file.info.items() if name == "double")


def test_shards_are_one_file(tmp_path):
    write_tensors(tmp_path / "model-1.safetensors", {"a": np.ones(2, np.float32)})
    write_tensors(tmp_path / "model-2.safetensors", {"b": np.zeros(3, np.float32), "c": np.ones(1, np.float32)})
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
    for path in (tmp_path, index):
        file = TensorFile(path)
        assert list(file) == ["a", "b"]
        assert (file["b"] == 0).all()
        assert "c" not in file


def test_a_folder_with_one_file_means_that_file(tmp_path):
    write_tensors(tmp_path / "any.safetensors", {"a": np.ones(2)})
    assert TensorFile(tmp_path).path.name == "any.safetensors"
    write_tensors(tmp_path / "other.safetensors", {"a": np.ones(2)})
    with pytest.raises(FileFormatError, match="holds 2 safetensors files and no index; name one file"):
        TensorFile(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.ones(100)})
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileFormatError, match=r"tensor 'a' of shape \[100\]: the file has changed since"):
        file["a"]


@pytest.mark.parametrize(
    ("tensors", "bfloat16", "error", "message"),
    [
        (
            {"a": np.ones(2, complex)},
            (),
            TypeError,
            "tensor 'a' must be float, integer or bool to be written, got comp",
        ),
        ({"a": np.array(["x"])}, (), TypeError, "tensor 'a' must be float, integer or bool to be written, got <U1"),
        ({"a": np.full(1, 1.001, np.float32)}, ["a"], ValueError, "tensor 'a' must hold float32 values that bfloat16"),
        ({"a": np.ones(1)}, ["a"], ValueError, "tensor 'a' must hold float32 values that bfloat16 has; round them"),
    ],
)
def test_what_cannot_be_written_is_named(tensors, bfloat16, error, message, tmp_path):
    with pytest.raises(error) as caught:
        write_tensors(tmp_path / "a.safetensors", tensors, bfloat16=bfloat16)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_stays_when_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def broken(self, data):
        self.open("wb").write(data[:1])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_without_the_package_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r'remedy: python -m pip install "lora-edu\[files\]"'):
        TensorFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("q_proj", "q_proj"), ("a\x1b[31m\nb", r"a\x1b[31m\nb"), ("\ud800", r"\ud800"), ("x" * 500, "x" * 400 + " ...")],
)
def test_names_are_printed_on_one_line_without_control_characters(text, shown):
    assert printable(text) == shown


def test_each_dtype_of_the_table_has_its_size():
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
    sizes |= {"U64": 8, "U32": 4, "U16": 2, "U8": 1}
    assert {label: np.dtype(dtype).itemsize for label, dtype in DTYPES.items()} == sizes
