"""What the chapter on a real model states, recomputed: from the model, or from its tables where it is missing."""

import math
import re

import numpy as np
import pytest

from lora_edu import bits_per_weight, quantize, relative_error
from lora_edu.blockwise import dequantize
from lora_edu.codebooks import INT4_ASYMMETRIC, NF4, Codebook
from lora_edu.datasets import ATTENTION_OUTPUT, FFN_DOWN, QUERY, everyday, minilm_measured, minilm_weights, sentences
from lora_edu.explorers import real_model as explore
from lora_edu.models import measured, minilm

needs_model = pytest.mark.needs_model
KINDS = list(minilm.LINEARS)


@pytest.fixture(scope="module")
def model():
    return minilm.load()


@pytest.fixture(scope="module")
def before(model):
    return model.embed(explore.library())


# The tables against the model


@needs_model
@pytest.mark.parametrize(
    ("name", "size"), [("NF4", 64), ("NF4", 0), ("INT4", 256), ("FP4", 16), ("INT4 min-max", 1024)]
)
def test_the_tables_are_what_the_model_gives(model, before, name, size):
    tables, at = minilm_measured(), (list(measured.FORMATS).index(name), measured.BLOCK_SIZES.index(size))
    after = model.quantized(size, measured.FORMATS[name]).embed(explore.library())
    assert np.allclose(tables["own_cosine"][at], measured.own_cosine(before, after), atol=1e-4)
    assert np.allclose(tables["format_similarity"][at], after[:40] @ after[:40].T, atol=1e-3)
    assert np.mean(tables["format_nearest"][at] == measured.nearest(after)[:, 0]) > 0.99
    assert not np.allclose(tables["own_cosine"][at[0], at[1] - 1], measured.own_cosine(before, after), atol=1e-3)


@needs_model
def test_the_tables_before_quantizing_are_what_the_model_gives(before):
    tables = minilm_measured()
    assert np.allclose(tables["similarity"], before[:40] @ before[:40].T, atol=1e-3)
    assert np.allclose(tables["margin"], measured.margins(before), atol=1e-5)
    assert np.array_equal(tables["nearest"], measured.nearest(before)[:, 0])


@needs_model
def test_the_tables_of_layers_and_weights_are_what_the_model_gives(model, before):
    tables = minilm_measured()
    names = minilm.linear_names(["value"])
    after = model.quantized(64, names=names).embed(explore.library())
    at = measured.LAYER_BLOCK_SIZES.index(64), -1, KINDS.index("value")
    assert tables["layer_cosine"][at] == pytest.approx(measured.own_cosine(before, after).mean(), abs=2e-5)
    for name, found in measured.weight_statistics(model).items():
        assert np.allclose(found, tables[name], rtol=1e-4, atol=1e-6), name


# Section 2: bytes


@needs_model
def test_bytes(model):
    names = minilm.linear_names()
    stored = {name: quantize(model.weights[name]).nbytes for name in [*names, minilm.WORDS]}
    assert sum(explore.megabytes(model).values()) == pytest.approx(90.85, abs=0.01)
    linears_only = explore.megabytes(model, {name: stored[name] for name in names})
    assert sum(linears_only.values()) == pytest.approx(54.4, abs=0.05)
    assert 1 - sum(linears_only.values()) / 90.85 == pytest.approx(0.40, abs=0.005)
    assert sum(explore.megabytes(model, stored).values()) == pytest.approx(14.1, abs=0.05)
    assert linears_only["attention"] + linears_only["FFN"] == pytest.approx(10.616832 * 4.5 / 8, abs=1e-6)


def test_quantizing_the_words_too_costs_almost_nothing():
    assert minilm_measured()["with_words"].mean() == pytest.approx(0.971, abs=0.002)


# Section 3: are weights normal?


def test_the_heavy_limit_is_a_tail_of_five_percent():
    fresh = np.random.default_rng(1).standard_normal((50_000, 64))
    assert np.mean(measured.excess_kurtosis(fresh) > measured.heavy_limit()) == pytest.approx(0.05, abs=0.004)
    assert measured.excess_kurtosis(np.random.default_rng(2).laplace(size=10**6)) == pytest.approx(3, abs=0.1)
    assert measured.excess_kurtosis(np.linspace(0, 1, 10**5)) == pytest.approx(-1.2, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "layer", "kurtosis", "largest"),  # measured once with scipy
    [
        ("query", 0, 1.02, 8.1),
        ("query", 3, 0.26, 5.2),
        ("key", 2, 0.74, 7.6),
        ("value", 4, 1.39, 7.6),
        ("FFN up", 3, 1.02, 7.5),
        ("FFN down", 0, 1582, 174.7),
        ("FFN down", 2, 528, 129),
    ],
)
def test_tails_of_whole_matrices(kind, layer, kurtosis, largest):
    found = explore.compute_weights(kind, layer, "tensor")
    assert found["kurtosis"] == pytest.approx(kurtosis, rel=0.02)
    assert found["largest"] == pytest.approx(largest, rel=0.01)


def dagostino_rejects(blocks) -> np.ndarray:
    """D'Agostino and Pearson 1973: K² = Z(skewness)² + Z(kurtosis)² beyond the 95 % point of χ² with 2 degrees."""
    n = blocks.shape[-1]
    z = measured.standardised(blocks)
    skew, kurtosis = np.mean(z**3, axis=-1), np.mean(z**4, axis=-1)
    y = skew * math.sqrt((n + 1) * (n + 3) / (6 * (n - 2)))
    beta = 3 * (n * n + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    w2 = math.sqrt(2 * (beta - 1)) - 1
    z_skew = np.arcsinh(y / math.sqrt(2 / (w2 - 1))) / math.sqrt(0.5 * math.log(w2))
    mean = 3 * (n - 1) / (n + 1)
    x = (kurtosis - mean) / math.sqrt(24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5)))
    root = 6 * (n * n - 5 * n + 2) / ((n + 7) * (n + 9)) * math.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    a = 6 + 8 / root * (2 / root + math.sqrt(1 + 4 / root**2))
    cube = (1 - 2 / a) / (1 + x * math.sqrt(2 / (a - 4)))
    z_kurtosis = (1 - 2 / (9 * a) - np.cbrt(cube)) / math.sqrt(2 / (9 * a))
    return z_skew**2 + z_kurtosis**2 > -2 * math.log(0.05)


@needs_model
@pytest.mark.parametrize(
    ("kind", "layer", "published"),
    [("query", 3, 0.084), ("key", 2, 0.168), ("value", 4, 0.201), ("FFN down", 0, 0.179)],
)
def test_a_test_of_others_agrees_on_which_blocks_are_not_normal(model, kind, layer, published):
    rejected = dagostino_rejects(model.weights[minilm.linear_name(kind, layer)].astype(float).reshape(-1, 64)).mean()
    assert rejected == pytest.approx(published, abs=0.001)  # scipy.stats.normaltest gave these
    assert explore.compute_weights(kind, layer, "block")["heavy"] == pytest.approx(rejected, abs=0.05)


def test_what_the_text_says_of_kinds():
    heavy = minilm_measured()["heavy"]
    mean = dict(zip(KINDS, heavy.mean(axis=0), strict=True))
    assert mean["query"] < 0.1 and mean["attention output"] < 0.1
    assert 0.1 < mean["FFN up"] < 0.14 and 0.2 < mean["FFN down"]
    assert (minilm_measured()["kurtosis"] > 0.2).all()  # "as a whole, no matrix is one"
    assert heavy[0, KINDS.index("FFN down")] == pytest.approx(0.21, abs=0.006)


def test_blocks_are_nearer_to_the_bell_than_matrices():
    tables = minilm_measured()
    beyond = np.abs(explore.bin_centres()) > 5
    tensor, block = (tables[f"{by}_histogram"][..., beyond].sum(axis=-1) for by in ("tensor", "block"))
    assert np.mean(block <= tensor) > 0.9
    for by in ("tensor", "block"):
        assert np.allclose(tables[f"{by}_histogram"].sum(axis=-1), 1, atol=1e-5)


# Section 4: what sentences notice


def test_the_headline():
    assert explore.compute_format("NF4", 64)["cosine"] == pytest.approx(0.972, abs=0.001)
    assert explore.compute_format("NF4", 64)["worst"] == pytest.approx(0.920, abs=0.0005)
    assert explore.compute_format("NF4", 0)["cosine"] == pytest.approx(0.503, abs=0.001)
    assert 13 < math.degrees(math.acos(explore.compute_format("NF4", 64)["cosine"])) < 14
    assert explore.compute_float32()["cosine"] == 1 and explore.compute_float32()["changed"] == 0


def test_the_error_in_every_matrix_is_nine_percent():
    for name in (QUERY, ATTENTION_OUTPUT):
        weight = minilm_weights()[name]
        assert relative_error(weight, dequantize(quantize(weight))) == pytest.approx(0.09, abs=0.008)


def test_with_one_scale_everything_resembles_everything():
    others = ~np.eye(20, dtype=bool).repeat(2, 0).repeat(2, 1)
    means = [explore.compute_format("NF4", size)["similarity"][others].mean() for size in (64, 0)]
    assert means[0] < 0.15 and means[1] > 0.4


@pytest.mark.parametrize(("name", "size", "bits"), [("NF4", 64, 4.5), ("INT4 min-max", 64, 5.0), ("FP4", 16, 6.0)])
def test_bits(name, size, bits):
    assert explore.bits(name, size) == bits
    one = quantize(np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32), size, measured.FORMATS[name])
    assert one.bits_per_weight == bits
    assert bits_per_weight(64) == 4.5


# Section 5: zero must be a level


@needs_model
def test_a_zero_doubles_the_cosine(model, before):
    """And NF4 loses as much when its own zero is moved: it is the zero, not the even spacing."""

    def cosine(there_and_back):
        names = minilm.linear_names()
        changed = model.with_weights({name: there_and_back(model.weights[name]) for name in names})
        return measured.own_cosine(before, changed.embed(explore.library())).mean()

    without, shifted = (
        explore.compute_format("INT4 min-max", 1024)["cosine"],
        cosine(lambda w: explore.zero_point(w, 1024)),
    )
    assert shifted == pytest.approx(0.917, abs=0.002) and without == pytest.approx(0.442, abs=0.002)
    assert 2 < shifted / without < 2.2
    moved = Codebook("moved", [level or 0.02 for level in NF4.levels], needs_zero=False)
    assert cosine(lambda w: minilm.round_trip(w, 1024, moved)) < 0.6 < explore.compute_format("NF4", 1024)["cosine"]


def test_without_a_zero_the_errors_of_a_block_with_an_outlier_share_a_sign():
    """Block means of the error, in its rms: 1 / 32 if 1024 errors are independent, 1 if they are all the same."""
    weight = minilm_weights()[FFN_DOWN].astype(np.float32)

    def drift(back):
        error = (back - weight).reshape(-1, 1024)
        return np.abs(error.mean(axis=1)) / np.sqrt(np.mean(error**2, axis=1))

    without, shifted = drift(minilm.round_trip(weight, 1024, INT4_ASYMMETRIC)), drift(explore.zero_point(weight, 1024))
    assert without.max() > 0.9 and np.median(without) < 0.05
    assert shifted.max() < 0.2 and np.argmax(without) == np.abs(weight).argmax() // 1024


@needs_model
def test_ten_blocks_do_nearly_all_of_it(model, before):
    """min to max in the blocks that span more than 40 σ, and a grid with a zero in all others."""
    chosen = 0

    def mixed(weight):
        nonlocal chosen
        far = np.ptp(weight.reshape(-1, 1024), axis=1) > 40 * weight.std()
        chosen += far.sum()
        ways = [minilm.round_trip(weight, 1024, INT4_ASYMMETRIC), explore.zero_point(weight, 1024)]
        return np.where(far[:, None], *(way.reshape(-1, 1024) for way in ways)).reshape(weight.shape)

    changed = model.with_weights({name: mixed(model.weights[name]) for name in minilm.linear_names()})
    cosine = measured.own_cosine(before, changed.embed(explore.library())).mean()
    assert chosen == 10 and sum(model.weights[name].size for name in minilm.linear_names()) // 1024 == 10_368
    assert cosine < 0.5 < explore.compute_format("NF4", 1024)["cosine"]


def test_the_grid_moves_by_at_most_half_a_step_and_holds_zero():
    weight = minilm_weights()[ATTENTION_OUTPUT].copy()
    weight[:3, ::7] = 0
    back = explore.zero_point(weight, 1024)
    assert (back[weight == 0] == 0).all()
    blocks, steps = weight.reshape(-1, 1024), np.ptp(weight.reshape(-1, 1024), axis=1, keepdims=True) / 15
    assert (np.abs(back.reshape(-1, 1024) - blocks) <= steps * 1.001).all()
    assert max(len(np.unique(block)) for block in back.reshape(-1, 1024)) <= 16


def test_in_small_blocks_min_max_beats_int4():
    for size in (16, 32, 64):
        assert explore.compute_format("INT4 min-max", size)["cosine"] > explore.compute_format("INT4", size)["cosine"]


# Section 6: which layer hurts


def test_the_worst_kind_depends_on_the_block_size():
    assert [explore.compute_layers(size, "key")["worst_kind"] for size in (16, 64, 256, 1024, 0)] == [
        *["FFN up"] * 4,
        "FFN down",
    ]
    together = dict(zip(KINDS, explore.compute_layers(64, "key")["together"], strict=True))
    published = {
        "query": 5e-4,
        "key": 8e-4,
        "attention output": 33e-4,
        "FFN down": 55e-4,
        "value": 78e-4,
        "FFN up": 101e-4,
    }
    assert sorted(together, key=together.get) == list(published)  # the order found with other sentences
    for kind, value in published.items():
        assert together[kind] == pytest.approx(value, rel=0.15)
    damage = explore.compute_layers(0, "key")["damage"]
    assert (np.delete(damage, KINDS.index("FFN down"), 1)[1:].max(axis=1) < damage[1:, KINDS.index("FFN down")]).all()


def test_damages_add():
    for size in (16, 64, 256, 1024):
        numbers = explore.compute_layers(size, "query")
        assert np.allclose(numbers["summed"], numbers["together"], rtol=0.12)
    total = 1 - explore.compute_format("NF4", 64)["cosine"]
    assert explore.compute_layers(64, "query")["damage"].sum() == pytest.approx(total, rel=0.03)


@needs_model
def test_damages_add_because_they_point_in_unrelated_directions(model, before):
    moved = [
        model.quantized(64, names=minilm.linear_names([kind])).embed(explore.library()) - before
        for kind in ("value", "FFN up", "FFN down")
    ]
    for i, one in enumerate(moved):
        for other in moved[:i]:
            cosines = np.sum(one * other, axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
            assert abs(cosines.mean()) < 0.1


# Section 7: neighbours


def test_pairs_pass_and_neighbours_change():
    for size, changed in ((64, 27), (0, 82)):
        numbers = explore.compute_neighbours("NF4", size)
        assert (numbers["pairs_found"], numbers["changed"]) == (40, changed)
        assert numbers["same"][:40].all()
    assert explore.compute_float32()["pairs_found"] == 40
    assert explore.compute_neighbours("INT4", 0)["pairs_found"] < 40  # where the first pair breaks
    assert explore.compute_neighbours("INT4 min-max", 1024)["pairs_found"] < 30
    assert abs(explore.compute_neighbours("NF4", 16)["changed"] - 27) < 5


def test_margins_of_pairs_are_wide():
    margin = minilm_measured()["margin"]
    assert margin[:40].min() > 0.1 and np.median(margin[40:]) < 0.05
    lost = ~explore.compute_neighbours("NF4", 64)["same"]
    assert margin[lost].max() < 0.05 and np.median(margin[lost]) < np.median(margin[~lost & (np.arange(160) >= 40)]) / 3


def test_nearest_and_margins_on_a_small_example():
    e = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float64)
    assert measured.nearest(e, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert np.allclose(measured.margins(e), [0.8, 0.2, 0.6, 0.8])
    assert measured.own_cosine(e, e).tolist() == pytest.approx([1, 1, 1, 1])


@needs_model
def test_your_sentence_finds_its_neighbours_but_not_itself(before):
    own = explore.library()[0]
    n = explore.compute_sentence(own, "NF4, blocks of 64")
    assert own not in [s for s, _ in n["before"]] and n["before"][0][0] == explore.library()[1]
    assert n["before"][0][1] == pytest.approx(float(before[0] @ before[1]), abs=1e-5)
    default = explore.compute_sentence(explore.SUGGESTIONS[0], "NF4, blocks of 64")
    assert default["before"][0] != default["after"][0]
    for odd in ("", "$x_1$ & <b>bold</b> 🙂", "word " * 400):
        n = explore.compute_sentence(odd, "NF4, one scale a matrix")
        assert "<b>" not in explore.explain_sentence(n) and len(n["after"]) == 5
        assert explore.plots.ranking(n).png(50)


# The sentences


def test_the_library_is_twenty_pairs_and_others_each_once():
    pairs, singles = everyday()
    assert (len(pairs), len(singles), len(explore.library()), len(set(explore.library()))) == (20, 40, 160, 160)
    assert explore.library()[:2] == pairs[0]


def test_half_of_the_speech_sentences_hold_a_negation():
    negation = re.compile(r"\b(not|never|no|cannot)\b|n't\b")
    rows = sentences()
    held = [bool(negation.search(text.lower())) for _, text in rows]
    assert len(rows) == len({text for _, text in rows}) == 490 and sum(held) == 245
    assert min(year for year, _ in rows) == 1961 and max(year for year, _ in rows) == 2021
    assert all(6 < len(text.split()) < 17 for _, text in rows)
