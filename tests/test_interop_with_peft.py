r"""PEFT itself: it loads what we write with zero difference, we read what it writes. Skipped without it."""

import numpy as np
import pytest
from conftest import ROOT

MISSING = "{} is not installed: the files are compared with PEFT's golden ones in test_interop_peft.py instead"
torch = pytest.importorskip("torch", reason=MISSING.format("PyTorch"))
peft = pytest.importorskip("peft", reason=MISSING.format("PEFT"))

from lora_edu import LoraConfig  # noqa: E402
from lora_edu.initialise import loftq, olora, pissa  # noqa: E402
from lora_edu.interop import TensorFile, combine, read_peft, to_peft, write_peft  # noqa: E402

BASE = ROOT / "tests" / "golden" / "peft" / "mlp" / "base.safetensors"
X = np.random.default_rng(7).normal(size=(5, 16)).astype(np.float32)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 16)
        self.q_proj = torch.nn.Linear(16, 32)
        self.v_proj = torch.nn.Linear(32, 24)
        self.fc = torch.nn.Linear(24, 8)

    def forward(self, x, tokens=None):
        x = x if tokens is None else x + self.embed(tokens)
        return self.fc(torch.relu(self.v_proj(torch.relu(self.q_proj(x)))))


def net():
    torch.manual_seed(0)
    model = Net()
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in TensorFile(BASE).items()}, strict=False)
    return model.eval()


def adapted(dtype=torch.float32, **settings):
    r"""A PEFT model with every number of its adapter random."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | settings
    model = peft.get_peft_model(net(), peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                change = torch.randn_like(parameter) * 0.3
                parameter.copy_(parameter.abs() + 0.1 if "magnitude" in name else change)
                parameter.data = parameter.data.to(dtype)
    return model


def arrays(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def base_arrays():
    return arrays(net())


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"^q_proj": 3}},
    "bias lora_only": {"bias": "lora_only"},
    "bias all": {"bias": "all"},
    "whole module": {"modules_to_save": ["fc"]},
    "embedding": {"target_modules": ["embed", "q_proj"]},
    "regular expression": {"target_modules": ".*_proj"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_what_peft_writes_merges_to_the_same_weights(case, tmp_path):
    model = adapted(**SETTINGS[case])
    model.save_pretrained(tmp_path)
    read = read_peft(tmp_path)
    ours = read.over(base_arrays())
    merged = arrays(model.merge_and_unload())
    for name in ours:
        ours[name].merge()
        assert np.allclose(ours[name].weight, merged[name + ".weight"], rtol=1e-5, atol=1e-6)
        bias = getattr(ours[name], "adapted_bias", ours[name].bias)
        if bias is not None:
            assert np.allclose(bias, merged[name + ".bias"], rtol=1e-5, atol=1e-6)
    for name, tensor in read.saved.items():
        assert (tensor == merged[name]).all()
    assert read.unsupported == {}
    assert bool(read.saved) == (case in ("bias lora_only", "bias all", "whole module"))


@pytest.mark.parametrize("case", SETTINGS)
def test_peft_loads_what_we_write_with_zero_difference(case, tmp_path):
    model = adapted(**SETTINGS[case])
    model.save_pretrained(tmp_path / "theirs")
    read = read_peft(tmp_path / "theirs")
    carried = {key: read.config.settings[key] for key in ("bias", "modules_to_save")}
    write_peft(to_peft(read.over(base_arrays()), saved=read.saved, **carried), tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(net(), tmp_path / "ours").eval()
    theirs, ours = arrays(model), arrays(loaded)
    assert theirs.keys() == ours.keys()
    assert all((theirs[name] == ours[name]).all() for name in theirs)
    with torch.no_grad():
        tokens = torch.arange(5)
        assert (model(torch.tensor(X), tokens) == loaded(torch.tensor(X), tokens)).all()


@pytest.mark.parametrize(("dtype", "label"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_half_precision_is_widened_exactly(dtype, label, tmp_path):
    model = adapted(dtype)
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    for name, layer in read_peft(tmp_path).layers.items():
        assert layer.dtype == label
        theirs = state[f"base_model.model.{name}.lora_A.default.weight"].to(torch.float32).numpy()
        assert (layer.lora_a == theirs).all()


@pytest.mark.parametrize(("ours", "theirs"), [(pissa, "pissa"), (olora, "olora")])
def test_initialisations_take_the_same_out_of_the_base(ours, theirs):
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "init_lora_weights": theirs}
    state = arrays(peft.get_peft_model(net(), peft.LoraConfig(**settings)))
    made = ours(base_arrays()["q_proj.weight"], LoraConfig(rank=4, alpha=6))
    assert np.allclose(made.base, state["base_model.model.q_proj.base_layer.weight"], atol=1e-6)
    a, b = (state[f"base_model.model.q_proj.lora_{part}.default.weight"] for part in "AB")
    assert np.allclose(made.lora_b @ made.lora_a, b @ a, atol=1e-6)


def test_a_pissa_adapter_read_back_names_the_base_it_belongs_to(tmp_path):
    peft.get_peft_model(net(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa")).save_pretrained(
        tmp_path
    )
    assert (
        "'pissa' changed the base weight" in read_peft(tmp_path).unsupported["adapter_config.json: init_lora_weights"]
    )


def test_peft_s_loftq_starts_elsewhere_unless_alpha_is_rank():
    weight = base_arrays()["q_proj.weight"]
    config = LoraConfig(rank=4, alpha=16)
    made = loftq(weight, config)
    ours = made.base + config.scaling * made.lora_b @ made.lora_a
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"], "init_lora_weights": "loftq"}
    try:
        model = peft.get_peft_model(net(), peft.LoraConfig(loftq_config=peft.LoftQConfig(loftq_bits=4), **settings))
    except (ImportError, AssertionError, RuntimeError) as error:  # bitsandbytes is missing, or a GPU
        pytest.skip(f"PEFT's LoftQ needs more: {error}")
    theirs = arrays(model.merge_and_unload())["q_proj.weight"]
    assert np.linalg.norm(ours - weight) < np.linalg.norm(made.base - weight) < np.linalg.norm(theirs - weight)


@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_combinations_are_those_of_peft(method, tmp_path):
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".other." in name:
                parameter.copy_(torch.randn_like(parameter))
    model.add_weighted_adapter(["default", "other"], [0.5, -1.5], "sum", combination_type=method)
    model.save_pretrained(tmp_path)
    ours = combine([read_peft(tmp_path), read_peft(tmp_path / "other")], [0.5, -1.5], method).adapter
    theirs = read_peft(tmp_path / "sum")
    for name in theirs.layers:
        assert np.allclose(ours.layers[name].delta_weight(), theirs.layers[name].delta_weight(), atol=1e-5)
