"""What the chapter on merging says, recomputed: numbers, the law, the dead zone and the ratchet."""

from fractions import Fraction

import numpy as np
import pytest

from lora_edu.blockwise import dequantize, quantize
from lora_edu.explorers import merge as explore
from lora_edu.linear import LoraLinear
from lora_edu.metrics import relative_error
from lora_edu.plots import merge as plots
from lora_edu.precision import gap, rounded


@pytest.mark.parametrize("precision", explore.FLOATS)
@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.1, 1.0])
def test_the_law_holds_for_every_entry(precision, size):
    table = explore.law_table(explore.compute_law(size, precision))
    assert sum(count for count, _ in table.values()) == explore.weight().size
    assert table["below"][1] == 1
    if table["above"][0]:
        assert table["above"][1] == 0
    if table["tie"][0] > 3000:
        assert table["tie"][1] == pytest.approx(0.5, abs=0.03)


def test_the_bars_of_the_law_are_its_table():
    law = explore.compute_law(0.1, "float16")
    bars, table = explore.law_bins(law), explore.law_table(law)
    total = np.add(bars["back"], bars["gone"]) * law["ratio"].size
    assert np.allclose([total[:4].sum(), total[4], total[5:].sum()], [count for count, _ in table.values()])
    assert sum(bars["gone"][:4]) == 0 and sum(bars["back"][5:]) == 0
    assert total[5] == pytest.approx(np.sum((law["ratio"] > 1) & (law["ratio"] <= 2)))
    assert total[3] == pytest.approx(np.sum((law["ratio"] >= 0.5) & (law["ratio"] < 1)))


def test_the_law_with_a_full_gap_would_fail():
    law = explore.compute_law(0.1, "float32")
    assert not law["back"][law["ratio"] < 2].all()


@pytest.mark.parametrize("precision", explore.FLOATS)
def test_the_error_of_the_addition_is_exact_in_float64(precision):
    law = explore.compute_law(0.1, precision)
    w, delta = explore.base(precision), explore.update(0.1, precision)
    merged = explore.merge(w, delta, precision)
    for i in np.random.default_rng(0).integers(0, w.size, 300):
        error = Fraction(float(merged.flat[i])) - Fraction(float(w.flat[i])) - Fraction(float(delta.flat[i]))
        half = Fraction(float(gap(w.flat[i], precision, float(error)))) / 2
        assert Fraction(float(law["ratio"][i])) == abs(error) / half


def test_a_lost_weight_has_its_sum_in_a_higher_binade():
    law = explore.compute_law(0.1, "float32")
    w, delta = explore.base("float32").ravel(), explore.update(0.1).ravel()
    above = law["ratio"] > 1
    assert (np.frexp((w + delta)[above])[1] > np.frexp(w[above])[1]).all()


def test_the_exact_sum_of_two_float16_or_bfloat16_is_rounded_once_through_float32():
    """float32 has more than twice their bits, so adding there and rounding again is the correctly rounded sum."""
    rng = np.random.default_rng(1)
    x, y = (rounded((rng.standard_normal(5000) * 2.0 ** rng.integers(-9, 3, 5000)), "float16") for _ in "xy")
    assert np.array_equal(x + y, (x.astype(np.float32) + y.astype(np.float32)).astype(np.float16))


def test_formats_lose_the_same_share_of_weights_and_keep_base_loses_none():
    lost = [explore.compute_not_back(0.1, p)["not_back"] for p in explore.FLOATS]
    assert max(lost) - min(lost) < 0.005 and min(lost) > 0.1
    by_size = explore.compute_not_back(0.1, "float32")["by_size"]
    assert by_size[0] > 0.5 and (np.diff(by_size) < 0).all()
    layer = explore.adapted(explore.weight(), 0.1)
    layer.merge(keep_base=True)
    assert (layer.weight != explore.weight()).mean() > 0.99
    layer.unmerge()
    assert np.array_equal(layer.weight, explore.weight())
    layer.merge(keep_base=False)
    layer.unmerge()
    assert 0.87 < np.mean(layer.weight == explore.weight()) < 0.9


def test_a_float64_copy_of_a_float32_weight_brings_everything_back():
    w, delta = explore.weight(), explore.update(0.1)
    assert np.array_equal(((w.astype(np.float64) + delta) - delta).astype(np.float32), w)


def test_the_error_left_behind_is_bounded_by_the_larger_term_not_by_steps_of_the_weight():
    w, delta = explore.weight(), explore.update(0.1)
    left = np.abs(((w + delta) - delta).astype(np.float64) - w)
    assert (left <= 2.0**-24 * 2 * (np.abs(w) + np.abs(delta))).all()
    assert (left / gap(w, "float32")).max() > 100


def test_outputs_differ_by_about_a_step_of_the_format():
    found = explore.compute_outputs(0.01)
    for name, step in {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}.items():
        assert 0.1 * step < found[name] < 10 * step
    layer = explore.adapted(explore.weight(), 0.01)
    x = np.random.default_rng(0).standard_normal((256, 384), dtype=np.float32)
    part = np.linalg.norm(x @ layer.delta_weight().T) / np.linalg.norm(layer(x))
    assert part == pytest.approx(0.01, rel=0.05)
    assert found["bfloat16"] / part == pytest.approx(0.25, abs=0.03)  # "a quarter of all that the adapter adds"


def test_what_the_weights_lose_the_outputs_lose():
    """For inputs of all directions the relative error of the adapter's part is that of the update."""
    x = np.random.default_rng(5).standard_normal((2000, 384))
    w, delta = explore.base("bfloat16"), explore.update(0.01, "bfloat16")
    effective = explore.merge(w, delta, "bfloat16").astype(np.float64) - w
    assert relative_error(x @ delta.T, x @ effective.T) == pytest.approx(relative_error(delta, effective), rel=0.03)


def test_the_curves_fall_as_one_over_the_size():
    """Rounding adds a fixed noise of step / √12: ten times the update, a tenth of the loss."""
    curves = explore.curves()
    for precision, first in (("float32", 0), ("float16", 5), ("bfloat16", 6)):
        lost = np.log10(curves[precision][first : first + 4])
        slope = np.polyfit(np.log10(explore.SIZES[first : first + 4]), lost, 1)[0]
        assert slope == pytest.approx(-1, abs=0.05)
    steps = np.abs(gap(explore.base("bfloat16"), "bfloat16"))
    predicted = np.sqrt(np.mean(steps**2) / 12) / (0.1 * explore.sigma())
    assert curves["bfloat16"][explore.SIZES.index(0.1)] == pytest.approx(predicted, rel=0.05)
    assert all(curves["NF4"][i] > 1 for i in range(explore.SIZES.index(0.03) + 1))


def test_unchanged_weights_are_those_with_an_update_below_half_a_gap():
    w, delta = explore.base("bfloat16"), explore.update(0.001, "bfloat16")
    below = np.abs(delta) < gap(w, "bfloat16", np.sign(delta)) / 2
    arrived = explore.compute_lab(0.001, "bfloat16")
    assert arrived["unchanged"] == pytest.approx(below.mean(), abs=0.002)
    assert arrived["unchanged"] == pytest.approx(0.78, abs=0.01)
    assert explore.compute_lab(0.001, "float16")["unchanged"] == pytest.approx(0.22, abs=0.01)


def test_marks_of_a_binade():
    found = np.unique(rounded(np.linspace(1, 2, 10_001, dtype=np.float32), "bfloat16"))
    assert np.sum(found < 2) == 128
    assert gap(np.float32(0.08203125), "bfloat16") == pytest.approx(0.0005, rel=0.03)


def test_the_ruler_shows_the_marks_of_the_format():
    numbers = explore.compute_ruler(0.01, "bfloat16")
    step = gap(np.float32(numbers["weight"]), "bfloat16") / numbers["update"]
    assert np.allclose(np.diff(numbers["marks"]), step, rtol=1e-9)
    nearest = numbers["marks"][np.argmin(np.abs(numbers["marks"] - 1))]
    assert numbers["landing"] == pytest.approx(nearest, abs=1e-12)
    assert explore.compute_ruler(0.01, "NF4")["landing"] == pytest.approx(0, abs=0.01)
    assert len(explore.compute_ruler(0.01, "float32")["marks"]) > plots.Ruler.MOST


def test_the_dead_zone_of_four_bits():
    """Published for a synthetic 4096² weight: 0.016 kept below 0.04 σ, half of it near 0.065 σ, error 1.08."""
    curves = explore.four_bit_curves()
    kept = dict(zip(explore.FOUR_BIT_SIZES, curves["share"]["A"], strict=True))
    assert kept[0.003] == pytest.approx(0.016, abs=0.005) and kept[0.02] < 0.03
    assert kept[0.06] < 0.5 < kept[0.08] and kept[0.2] > 0.97
    assert curves["error"]["A"][0] == pytest.approx(1.08, abs=0.02)
    assert all(share == pytest.approx(1, abs=0.03) for share in curves["share"]["B"][1:])
    assert all(share == pytest.approx(1, abs=0.005) for share in curves["share"]["C"])
    noise = relative_error(explore.weight(), explore.base("NF4"))  # B's error is the quantization error
    assert curves["error"]["B"][0] == pytest.approx(noise / 0.003, rel=0.02)
    small = explore.update(0.01)
    codes = quantize(explore.base("NF4")).codes()
    assert np.mean(quantize(explore.base("NF4") + small).codes() != codes) < 1e-3


def test_a_4_bit_layer_refuses_to_merge():
    from lora_edu.qlora import QLoraLinear

    with pytest.raises(RuntimeError, match="4-bit base cannot take an update"):
        QLoraLinear(explore.weight(), rank=8).merge()


@pytest.mark.parametrize("size", [0.002, 0.02])
def test_the_ratchet_adds_the_largest_push_either_way_in_every_cycle(size):
    r"""absmax after n cycles = absmax + n (max of Δ outward + max of Δ inward) over the weights that share the top."""
    path = explore.ratchet_path(size)
    start = path["weights"][0].astype(np.float64)
    delta = explore.update(size)[: explore.RATCHET_ROWS].reshape(start.shape)
    absmax = np.abs(start).max(axis=1, keepdims=True)
    push = np.where(np.abs(start) == absmax, np.sign(start) * delta, np.nan)
    a_cycle = np.nanmax(push, axis=1) + np.nanmax(-push, axis=1)
    for cycles in (1, 10, 100):
        assert np.allclose(path["growth"][cycles], 1 + cycles * a_cycle / absmax[:, 0], atol=1e-4)
    single = np.sum(np.abs(start) == absmax, axis=1) == 1
    assert np.array_equal(single, path["growth"][100] < 1.0001)
    assert not np.allclose(path["growth"][100], 1 + 100 * np.nanmax(push, axis=1) / absmax[:, 0], atol=1e-2)


def test_the_ratchet_leaves_the_codes_and_bfloat16_alone():
    path = explore.ratchet_path(0.02)
    before, after = (quantize(path["weights"][i].ravel()).codes() for i in (0, -1))
    assert np.mean(before == after) > 0.99
    assert path["growth"][-1].mean() == pytest.approx(1.89, abs=0.01)
    assert np.abs(path["sixteen"][-1].mean() - 1) < 1e-3


def test_the_bits_are_those_of_the_numbers():
    for magnitude, size, precision in ((0.03, 0.1, "float16"), (1.0, 0.01, "bfloat16"), (0.01, 1.0, "float16")):
        numbers = explore.compute_bits(magnitude, size, precision)
        places = 2.0 ** -np.arange(1, explore.COLUMNS + 1)
        for row, value in zip(numbers["bits"], numbers["values"], strict=True):
            assert np.sum(places * (row == 1)) == abs(value)
        assert numbers["values"][0] + numbers["values"][1] + numbers["error"] == numbers["values"][3]
        if numbers["ratio"] != 1:
            assert bool(numbers["comes_back"]) == (numbers["ratio"] < 1)


def test_the_published_states_say_what_the_text_says():
    states = [explore.compute_bits(magnitude, 0.1, "float16") for magnitude in (1.0, 0.1, 0.01)]
    assert [n["comes_back"] for n in states] == [1, 1, 0]
    assert [int(n["lost"][2].sum() > 0) for n in states] == [1, 0, 1]


def test_merging_by_the_formula_is_what_the_layer_stores():
    layer = explore.adapted(explore.weight(), 0.1)
    layer.merge()
    exact = explore.weight() + layer.scaling * (layer.lora_b.astype(np.float64) @ layer.lora_a)
    assert np.abs(layer.weight - exact).max() < 2.0**-24 * 4
    assert np.allclose(layer.delta_weight(), explore.update(0.1), atol=1e-6)  # the same update, scaled the same way
    assert isinstance(layer, LoraLinear) and np.array_equal(dequantize(quantize(explore.weight())), explore.base("NF4"))
