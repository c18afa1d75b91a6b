r"""PEFT adapters: every golden folder read, run, merged and written; `golden/README.md` says who made them."""

import json
import shutil

import numpy as np
import pytest
import tiny_models
from conftest import ROOT

from lora_edu import LoraAdapter, LoraConfig, LoraLinear, QLoraLinear
from lora_edu.interop import PeftLayer, TensorFile, read_peft, to_peft, write_peft, write_tensors
from lora_edu.variants import DoraLinear, LoraEmbedding, LoraLinearWithBias

GOLDEN = ROOT / "tests" / "golden" / "peft"
CASES = {
    "mlp/plain": tiny_models.mlp,
    "mlp/rslora": tiny_models.mlp,
    "mlp/patterns": tiny_models.mlp,
    "mlp/dora": tiny_models.mlp,
    "gpt2/c_attn": tiny_models.gpt2,
    "llama/plain": tiny_models.llama,
}


def base_of(case):
    return TensorFile(GOLDEN / case.split("/")[0] / "base.safetensors")


def opened(case):
    return read_peft(GOLDEN / case).over(base_of(case))


def near(value, golden):
    r"""Within float32 accuracy: the sums run in another order."""
    return np.allclose(value, golden, rtol=1e-5, atol=1e-5 * np.abs(golden).max())


def run(case, adapter, x):
    r"""The whole model, with its adapted layers from `adapter` and the others from the base."""
    base = dict(base_of(case))

    def linear(name, x):
        if name in adapter:
            return adapter.forward(name, x.astype(np.float32))
        weight = base[name + ".weight"]
        transposed = case.startswith("gpt2")
        return x @ (weight if transposed else weight.T) + base.get(name + ".bias", 0)

    model = CASES[case]
    return model(linear, x) if model is tiny_models.mlp else model(base, linear, x)


# --- against PEFT's own numbers


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_peft(case):
    io = TensorFile(GOLDEN / case / "io.safetensors")
    adapter = opened(case)
    assert near(run(case, adapter, io["x"]), io["y_lora"])
    with adapter.disabled():
        assert near(run(case, adapter, io["x"]), io["y_base"])
    adapter.merge_all()
    assert near(run(case, adapter, io["x"]), io["y_merged"])
    assert not near(io["y_base"], io["y_lora"])  # the adapter does something


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_those_of_peft(case):
    merged = TensorFile(GOLDEN / case / "merged.safetensors")
    adapter = opened(case)
    adapter.merge_all()
    for name in adapter:
        assert near(adapter[name].weight, merged[name + ".weight"])


def test_the_ranks_and_scalings_are_those_of_the_patterns():
    layers = read_peft(GOLDEN / "mlp/patterns").layers
    assert {name: (x.rank, x.scaling) for name, x in layers.items()} == {
        "fc": (6, 2.0),
        "q_proj": (2, 4.0),
        "v_proj": (4, 0.75),
    }
    assert read_peft(GOLDEN / "mlp/rslora").layers["fc"].scaling == 16 / np.sqrt(8)


def test_another_rule_for_scaling_would_be_seen():
    io = TensorFile(GOLDEN / "mlp/rslora/io.safetensors")
    adapter = read_peft(GOLDEN / "mlp/rslora")
    wrong = LoraAdapter(LoraConfig(rank=8, alpha=16))
    base = base_of("mlp/rslora")
    for name, layer in adapter.layers.items():
        plain = LoraLinear(base[name + ".weight"], LoraConfig(rank=8, alpha=16), bias=base[name + ".bias"])
        plain.lora_a, plain.lora_b = layer.lora_a, layer.lora_b
        wrong.add(name, plain)
    assert not near(run("mlp/rslora", wrong, io["x"]), io["y_lora"])


@pytest.mark.parametrize("case", CASES)
def test_singular_values_need_no_full_matrix(case):
    for layer in read_peft(GOLDEN / case).layers.values():
        full = np.linalg.svd(layer.delta_weight(), compute_uv=False)
        assert np.allclose(layer.singular_values(), full[: layer.rank], rtol=1e-10)
        assert np.allclose(full[layer.rank :], 0, atol=1e-10)
        assert 1 <= layer.effective_rank() <= layer.rank


# --- reading is lazy


def test_only_the_weights_asked_for_are_read(monkeypatch):
    read = []
    getitem = TensorFile.__getitem__
    monkeypatch.setattr(TensorFile, "__getitem__", lambda self, name: read.append(name) or getitem(self, name))
    adapter = read_peft(GOLDEN / "llama/plain")
    base = base_of("llama/plain")
    assert (next(iter(adapter.layers)) in adapter.layers, "lm_head.weight" in base, read) == (True, True, [])
    adapter.over(base)
    assert {name for name in read if "lora" not in name} == {name + ".weight" for name in adapter.layers}


def test_a_base_file_without_the_models_own_prefix_is_understood(tmp_path):
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in base_of("gpt2/c_attn").items()}
    write_tensors(tmp_path / "model.safetensors", tensors)
    adapter = read_peft(GOLDEN / "gpt2/c_attn").over(TensorFile(tmp_path))
    merged = TensorFile(GOLDEN / "gpt2/c_attn/merged.safetensors")
    adapter.merge_all()
    assert all(near(adapter[name].weight, merged[name + ".weight"]) for name in adapter)


def test_plain_arrays_by_layer_serve_as_a_base():
    base = base_of("mlp/plain")
    adapter = read_peft(GOLDEN / "mlp/plain").over({name: base[name + ".weight"] for name in ("q_proj", "v_proj")})
    assert adapter["q_proj"].bias is None


# --- writing


def same(one, other):
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("case", [*CASES, "mlp_two/a", "mlp_two/cat"])
def test_what_was_read_is_written_back_as_it_was(case, tmp_path):
    write_peft(read_peft(GOLDEN / case), tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / case / name).read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_our_adapter_is_written_with_peft_s_keys(case, tmp_path):
    adapter = opened(case)
    write_peft(to_peft(adapter), tmp_path)
    stored, golden = (json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path, GOLDEN / case))
    assert stored.keys() == golden.keys()
    anchored = ("rank_pattern", "alpha_pattern")
    differing = {key for key in stored if stored[key] != golden[key]} - {"auto_mapping"}
    assert differing <= set(anchored)
    for key in anchored:
        assert {name.removeprefix("^"): value for name, value in stored[key].items()} == golden[key]
    ours, theirs = (TensorFile(f / "adapter_model.safetensors") for f in (tmp_path, GOLDEN / case))
    assert list(ours) == list(theirs)
    assert ours.metadata == theirs.metadata == {"format": "pt"}
    assert all(same(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_and_written(dtype, tmp_path):
    adapter = read_peft(GOLDEN / "mlp/plain")
    write_peft(adapter, tmp_path / "half", dtype)
    half = read_peft(tmp_path / "half")
    label = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    step = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for name, layer in half.layers.items():
        exact = adapter.layers[name].lora_a
        assert layer.dtype == label
        assert layer.lora_a.dtype == np.float32
        assert (np.abs(layer.lora_a - exact) <= step * np.abs(exact)).all()
    write_peft(half, tmp_path / "again", dtype)
    assert (tmp_path / "again/adapter_model.safetensors").read_bytes() == (
        tmp_path / "half/adapter_model.safetensors"
    ).read_bytes()


def trained(kind=LoraLinear, config=None, seed=0, **settings):
    r"""A layer whose A and B are not what they start as."""
    rng = np.random.default_rng(seed)
    config = config or LoraConfig(rank=2, alpha=6)
    layer = kind(rng.normal(size=(5, 4)).astype(np.float32), config, **settings)
    layer.lora_b = rng.normal(size=layer.lora_b.shape)
    return layer


def adapter_of(config=None, **layers):
    adapter = LoraAdapter(config or LoraConfig(rank=2, alpha=6))
    for name, layer in layers.items():
        adapter.add(name.replace("__", "."), layer)
    return adapter


def written(adapter, folder, **settings):
    write_peft(to_peft(adapter, **settings), folder)
    return read_peft(folder)


def test_layers_of_different_rank_and_alpha_come_back(tmp_path):
    one, other = trained(), trained(config=LoraConfig(rank=3, alpha=1.5))
    back = written(adapter_of(q=one, x__q=other), tmp_path)
    assert {name: (x.rank, x.config.alpha) for name, x in back.layers.items()} == {"q": (2, 6.0), "x.q": (3, 1.5)}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DoraLinear, {"magnitude": np.arange(1, 6, dtype=np.float32)}),
        (LoraLinearWithBias, {"bias": np.ones(5, np.float32), "lora_bias": np.arange(5, dtype=np.float32)}),
        (LoraEmbedding, {"config": LoraConfig(rank=2, alpha=6, fan_in_fan_out=True)}),
    ],
)
def test_every_kind_of_layer_comes_back(kind, settings, tmp_path):
    layer = trained(kind, **settings)
    base = {"q.weight": layer.weight} | ({} if layer.bias is None else {"q.bias": layer.bias})
    back = written(adapter_of(layer.config, q=layer), tmp_path).over(base)["q"]
    assert type(back) is kind
    x = np.arange(5) if kind is LoraEmbedding else np.ones((3, 4), np.float32)
    assert same(back(x), layer(x))


def test_trained_parts_of_the_base_are_kept_and_used(tmp_path):
    layer = trained(bias=np.zeros(5, np.float32))
    saved = {"q.bias": np.full(5, 7, np.float32), "head.weight": np.eye(3, dtype=np.float32)}
    back = written(adapter_of(q=layer), tmp_path, saved=saved, bias="lora_only", modules_to_save=["head"])
    assert sorted(TensorFile(tmp_path)) == [
        "base_model.model.head.weight",
        "base_model.model.q.base_layer.bias",
        "base_model.model.q.lora_A.weight",
        "base_model.model.q.lora_B.weight",
    ]
    assert {name: list(tensor.shape) for name, tensor in back.saved.items()} == {"q.bias": [5], "head.weight": [3, 3]}
    assert back.config.notes == ["biases were trained too (lora_only)", "modules trained whole: head"]
    base = {"q.weight": layer.weight, "q.bias": layer.bias}
    assert (back.over(base)["q"].bias == 7).all()


def test_a_four_bit_layer_is_written_too(tmp_path):
    layer = trained(QLoraLinear)
    back = written(adapter_of(q=layer), tmp_path)
    assert same(back.layers["q"].lora_b, layer.lora_b)


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_peft(read_peft(GOLDEN / "mlp/plain"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_peft(read_peft(GOLDEN / "mlp/dora"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: to_peft(adapter_of(q=trained()), r=4), ValueError, "r follow from the layers; change them there"),
        (lambda: to_peft(adapter_of(q=trained()), rank=4), ValueError, "PEFT has no key 'rank' in adapter_config.json"),
        (lambda: to_peft(adapter_of()), ValueError, "the adapter has no layers yet; add one first"),
        (
            lambda: to_peft(adapter_of(q=trained(), v=trained(config=LoraConfig(rank=2, use_rslora=True)))),
            ValueError,
            "use_rslora must be the same in every layer of a PEFT adapter, got {'q': False, 'v': True}",
        ),
        (
            lambda: to_peft(adapter_of(q=trained(), v=trained(DoraLinear))),
            ValueError,
            "either every layer of a PEFT adapter has a magnitude or none",
        ),
        (
            lambda: to_peft(adapter_of(q=trained()), saved={"head.weight": np.eye(2)}),
            ValueError,
            "'head.weight' would not be loaded; name its module in modules_to_save, or give bias='all'",
        ),
        (
            lambda: write_peft(read_peft(GOLDEN / "mlp/plain"), "never", "int8"),
            ValueError,
            "dtype must be float32, float16 or bfloat16, got 'int8'",
        ),
        (
            lambda: read_peft(GOLDEN / "mlp/plain").over({}),
            KeyError,
            "the base has no weight 'q_proj.weight'",
        ),
        (
            lambda: read_peft(GOLDEN / "mlp/plain").over({"q_proj.weight": np.zeros((16, 32), np.float32)}),
            ValueError,
            "layer 'q_proj' needs a base weight of shape (32, 16), got (16, 32)",
        ),
        (
            lambda: read_peft(GOLDEN / "mlp/plain").over({"q_proj.weight": np.zeros((32, 16), np.uint8)}),
            TypeError,
            "layer 'q_proj': weight must be an array of float16, float32, float64, got uint8",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_a_value_that_float16_lacks_is_refused(tmp_path):
    layer = trained()
    layer.lora_b = np.full((5, 2), 1e5)
    with pytest.raises(ValueError, match=r"q\.lora_B\.weight in float16 must be finite"):
        write_peft(to_peft(adapter_of(q=layer)), tmp_path / "new", "float16")
    assert not (tmp_path / "new").exists()


# --- what is not supported is named


def changed(folder, case="mlp/plain", tensors=None, **settings):
    r"""A copy of a golden adapter with other settings or more tensors."""
    shutil.copytree(GOLDEN / case, folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if tensors:
        all_tensors = dict(TensorFile(folder)) | tensors
        write_tensors(folder / "adapter_model.safetensors", all_tensors)
    return folder


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_qalora": True}, "adapter_config.json: use_qalora"),
        ({"layer_replication": [[0, 2]]}, "adapter_config.json: layer_replication"),
        ({"target_parameters": ["experts.weight"]}, "adapter_config.json: target_parameters"),
        ({"init_lora_weights": "pissa"}, "adapter_config.json: init_lora_weights"),
        ({"target_modules": ["q_proj"]}, "base_model.model.v_proj.lora_A.weight"),
        (
            {"tensors": {"base_model.model.conv.lora_A.weight": np.zeros((4, 3, 3, 3), np.float32)}},
            "base_model.model.conv.lora_A.weight",
        ),
        ({"tensors": {"base_model.model.q_proj.lora_C": np.zeros(3)}}, "base_model.model.q_proj.lora_C"),
        ({"tensors": {"unet.lora_A.weight": np.zeros((4, 3), np.float32)}}, "unet.lora_A.weight"),
        ({"tensors": {"base_model.model.fc.weight": np.zeros(3)}}, "base_model.model.fc.weight"),
    ],
)
def test_what_is_not_supported_is_named_and_not_skipped(settings, named, tmp_path):
    adapter = read_peft(changed(tmp_path / "a", **settings))
    assert named in adapter.unsupported
    with pytest.raises(ValueError, match="not supported: ") as caught:
        adapter.over(base_of("mlp/plain"))
    assert named in str(caught.value)
    with pytest.raises(ValueError, match="not supported, so it would be lost"):
        write_peft(adapter, tmp_path / "b")
    assert len(adapter.over(base_of("mlp/plain"), ignore_unsupported=True)) >= 1


def test_an_unknown_key_is_noted(tmp_path):
    adapter = read_peft(changed(tmp_path / "a", later_key=1))
    assert adapter.config.notes == ["unknown key 'later_key', ignored as PEFT does"]


def test_a_rank_above_the_shape_can_be_looked_at():
    rng = np.random.default_rng(0)
    layer = PeftLayer(rng.normal(size=(6, 4)), rng.normal(size=(5, 6)), LoraConfig(rank=6))
    assert np.allclose(layer.singular_values(), np.linalg.svd(layer.delta_weight(), compute_uv=False))
