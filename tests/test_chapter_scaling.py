"""What the chapter on scaling states, computed again: slopes, zeros, and the first steps."""

import numpy as np
import pytest

from lora_edu import LoraConfig, LoraLinear
from lora_edu.explorers import scaling as explore
from lora_edu.training import SGD, Adam, lora_gradients


@pytest.mark.parametrize(
    ("rule", "output", "gradient", "sgd", "adam"),
    [("α alone", 0.5, 0.5, 1, 1), ("α / √r", 0, 0, 0, 0.5), ("α / r", -0.5, -0.5, -1, 0)],
)
def test_the_slopes_are_those_of_the_theory_and_the_rules_swap_roles(rule, output, gradient, sgd, adam):
    measured = {name: explore.compute_rank_sweep(rule, name, 16)["slopes"] for name in ("SGD", "Adam")}
    assert measured["SGD"]["output"][rule] == pytest.approx(output, abs=0.05)
    assert measured["SGD"]["gradient"][rule] == pytest.approx(gradient, abs=0.05)
    assert measured["SGD"]["progress"][rule] == pytest.approx(sgd, abs=0.06)
    assert measured["Adam"]["progress"][rule] == pytest.approx(adam, abs=0.06)


def test_the_output_is_the_sum_over_the_rank():
    raw = explore.unscaled_sizes()["output"]
    assert raw[7] / raw[3] == pytest.approx(4, abs=0.2)  # rank 128 over rank 8


@pytest.mark.parametrize(("optimizer", "factor"), [("SGD", 4), ("Adam", 2)])
def test_doubling_alpha_changes_progress_by_its_square_under_sgd_and_by_itself_under_adam(optimizer, factor):
    one, two = (
        explore.compute_rank_sweep("α / r", optimizer, alpha)["curves"]["progress"]["α / r"] for alpha in (4, 8)
    )
    np.testing.assert_allclose(two / one, factor, rtol=1e-12)


def test_the_progress_of_a_step_is_what_the_loss_really_falls_by():
    problem, (a, _) = explore.repair_problem(), explore._pair()
    x, base, upstream = problem["x"], problem["base"], problem["upstream"]
    wanted, scaling, lr = x @ base.T - upstream, 0.5, 1e-6
    b = np.zeros((len(base), 8))
    d_b = lora_gradients(x, upstream, base, a[:8], b, scaling).lora_b
    for step, predicted in ((d_b, np.sum(d_b**2)), (np.sign(d_b), np.abs(d_b).sum())):
        after = x @ base.T + scaling * (x @ a[:8].T) @ (b - lr * step).T
        fall = (np.sum(upstream**2) - np.sum((after - wanted) ** 2)) / 2
        assert fall / lr == pytest.approx(predicted, rel=1e-3)
    raw = explore.unscaled_sizes()
    assert np.abs(d_b).sum() == pytest.approx(scaling * raw["Adam"][3])
    assert np.sum(d_b**2) == pytest.approx(scaling**2 * raw["SGD"][3])


def test_one_random_factor_is_enough_and_two_zeros_never_learn():
    runs = {start: explore.train(8, 8, "α / r", "Adam", start) for start in explore.STARTS}
    first = {start: run["norms"][0] for start, run in runs.items()}
    assert first["A random, B zero"][0] == 0 and first["A random, B zero"][1] > 0
    assert first["A zero, B random"][1] == 0 and first["A zero, B random"][0] > 0
    assert (runs["A and B zero"]["norms"] == 0).all() and (runs["A and B zero"]["losses"] == 1).all()
    assert runs["A random, B zero"]["norms"][1, 0] > 0


def test_a_zero_b_leaves_the_output_as_it_was_bit_for_bit():
    layer = LoraLinear(np.random.default_rng(0).standard_normal((9, 7)), rank=3)
    x = np.random.default_rng(1).standard_normal((5, 7))
    with layer.disabled():
        base = layer(x)
    assert (layer(x) == base).all()


@pytest.mark.parametrize(("optimizer", "level", "spread"), [("Adam", "α / r", "α / √r"), ("SGD", "α / √r", "α / r")])
def test_the_curves_of_three_ranks_agree_under_the_rule_made_for_the_optimizer(optimizer, level, spread):
    def ratio_of_falls(rule):
        falls = [1 - explore.train(rank, 8, rule, optimizer)["losses"][10] for rank in explore.COMPARED]
        return max(falls) / min(falls)

    assert ratio_of_falls(level) < 1.15
    assert ratio_of_falls(spread) > 2


def test_with_the_learning_rate_tuned_for_each_rank_the_two_rules_end_alike(monkeypatch):
    def best(rank, rule):
        found = []
        for lr in (0.02, 0.04, 0.08, 0.16):
            monkeypatch.setitem(explore.OPTIMIZERS, "Adam", lambda lr=lr: Adam(lr))
            found.append(explore.train.__wrapped__(rank, 8, rule, "Adam")["losses"][-1])
        return min(found)

    for rank in explore.COMPARED:
        untuned = [explore.train(rank, 8, rule, "Adam")["losses"][10] for rule in ("α / r", "α / √r")]
        gap = abs(best(rank, "α / r") - best(rank, "α / √r"))
        assert gap < 0.01 < 0.1 < untuned[0] - untuned[1]


def test_a_run_that_diverges_says_so_instead_of_showing_a_gradient_it_never_had():
    picture = explore.first_steps().new_picture(explore.compute_first_steps(64, 64, "α alone", "SGD"))
    texts = [text.get_text() for row in picture.panels["B"].texts for text in row]
    assert texts[0] == "exactly 0" and texts[1:3] == ["diverged", "diverged"] == texts[4:]
    assert "diverges" in picture.alt


@pytest.mark.parametrize(("rank", "gaussian"), [(8, 18), (64, 0.28)])
def test_a_wider_a_makes_the_first_sgd_step_longer_by_the_square(rank, gaussian):
    problem = explore.repair_problem()
    full = problem["upstream"].T @ problem["x"]

    def length(init):  # of ΔW / (-lr s²) = G AᵀA, averaged over draws
        layers = [LoraLinear(problem["base"], LoraConfig(rank=rank, init=init), seed=1000 + k) for k in range(8)]
        return np.mean([np.linalg.norm(full @ layer.lora_a.T @ layer.lora_a) for layer in layers])

    assert length("reference") / length("kaiming") == pytest.approx(2, rel=0.05)
    assert length("gaussian") / length("kaiming") == pytest.approx(gaussian, rel=0.05)  # (1/r)² · 3 in


def test_an_adapter_run_with_another_scaling_is_worse_than_none():
    losses = explore.compute_loaded({"right": 2, "alpha alone": 16, "alpha times rank": 128})["losses"]
    assert losses["right"] < 0.5 < 1 < losses["alpha alone"] < losses["alpha times rank"]


def test_the_inits_have_the_widths_that_the_text_gives():
    spread = {name: entries.std() for name, entries in explore.compute_window()["entries"].items()}
    assert spread["kaiming"] == pytest.approx(1 / np.sqrt(3 * 384), rel=0.03)
    assert spread["reference"] == pytest.approx(np.sqrt(2 / (3 * 384)), rel=0.03)
    assert spread["gaussian"] == pytest.approx(1 / 8, rel=0.03)
    assert spread["reference"] / spread["kaiming"] == pytest.approx(np.sqrt(2), rel=0.04)


def test_the_first_sgd_step_is_the_gradient_seen_through_a():
    rng = np.random.default_rng(3)
    x, upstream, a = rng.standard_normal((6, 9)), rng.standard_normal((6, 5)), rng.standard_normal((2, 9))
    scaling, lr, b = 1.7, 0.03, np.zeros((5, 2))
    d_a, d_b, _ = lora_gradients(x, upstream, np.zeros((5, 9)), a, b, scaling)
    a_new, b_new = SGD(lr).step([a, b], [d_a, d_b])
    assert (a_new == a).all()
    np.testing.assert_allclose(scaling * b_new @ a_new, -lr * scaling**2 * upstream.T @ x @ a.T @ a, rtol=1e-12)


def test_the_first_step_points_along_the_gradient_as_the_formula_says():
    window = explore.compute_window()
    np.testing.assert_allclose(window["cosine"], window["formula"], atol=0.03)


def test_rslora_is_the_rule_of_the_config():
    assert explore.RULES["α / √r"](8, 16) == LoraConfig(rank=16, alpha=8, use_rslora=True).scaling == 2
    assert explore.RULES["α / r"](8, 16) == 0.5 and explore.RULES["α alone"](8, 16) == 8
