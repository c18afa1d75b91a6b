r"""The chapters' fine-tuning runs, small: the order of the methods, and the facts that the pictures show."""

from functools import cache

import numpy as np
import pytest

from lora_edu import truncate_svd
from lora_edu.datasets.digit_tasks import digit_task
from lora_edu.models.finetuning import (
    DIGIT_RATES,
    NAME_RATES,
    energy_ranks,
    fine_tune_digits,
    fine_tune_names,
    pretrained_digits,
    quarter_turn_fix,
    truncate_for_data,
    two_bit,
    weight_changes,
)
from lora_edu.models.transformer import QUERY_VALUE, CharTransformer


@cache
def digits(seed, change="turn 90", labels=450):
    task = digit_task(change, labels, seed)
    return task, pretrained_digits(task, seed)


def accuracy(method, seeds=range(3), change="turn 90", labels=450, base=lambda model: model, **settings):
    """Mean test accuracy after fine-tuning."""
    found = []
    for seed in seeds:
        task, model = digits(seed, change, labels)
        _, records = fine_tune_digits(
            base(model), task, method, seed=seed, every=settings.get("steps", 560), **settings
        )
        found.append(list(records)[-1].metrics["accuracy"])
    return float(np.mean(found))


def test_turned_digits_by_method():
    full, last, biases = accuracy("full"), accuracy("last layer"), accuracy("biases")
    assert 0.92 < full < 0.98 and 0.75 < last < 0.88 and 0.4 < biases < 0.6
    assert accuracy("scratch") > full  # turning is a new start: rank is the capacity of the change, not transfer


def test_turned_digits_by_rank():
    low, middle, high = (accuracy("LoRA", rank=rank) for rank in (1, 4, 16))
    assert 0.8 < low < middle < high and middle > 0.91 and high > 0.93
    assert abs(accuracy("QLoRA", rank=4) - middle) < 0.03


def test_a_two_bit_base_loses_much_and_an_adapter_brings_it_back():
    task, model = digits(0)
    assert two_bit(model).accuracy(*task.upright) < model.accuracy(*task.upright) - 0.1
    assert two_bit(model).linear_weights()["fc1"].dtype == np.float32
    assert len(np.unique(two_bit(model).linear_weights()["fc1"].ravel()[:64])) == 4
    assert accuracy("LoRA", base=two_bit, rank=4) > 0.9


def test_transfer_pays_for_a_small_turn_and_the_head_for_new_names():
    few = {"labels": 30, "steps": 150, "seeds": range(4)}
    assert accuracy("LoRA", change="turn 20", **few) > accuracy("scratch", change="turn 20", **few) + 0.02
    assert accuracy("last layer", change="relabel 5", **few) > accuracy("LoRA", change="relabel 5", **few) + 0.05


def test_every_method_has_a_rate_and_repeats_bit_for_bit():
    task, base = digits(0)
    for method in DIGIT_RATES:
        one, other = (list(fine_tune_digits(base, task, method, steps=4, every=2)[1]) for _ in range(2))
        assert one == other and one[-1].metrics["accuracy"] == other[-1].metrics["accuracy"]


def test_the_exact_fix_undoes_the_turn():
    task, base = digits(0)
    fixed = base.copy()
    weight = base.linear_weights()["fc1"]
    fixed.assign({"fc1.weight": weight + quarter_turn_fix(weight)})
    np.testing.assert_allclose(fixed.forward(task.test[0]), base.forward(task.upright[0]), rtol=1e-3, atol=1e-4)
    assert fixed.accuracy(*task.test) == base.accuracy(*task.upright)


def test_eckart_young_is_optimal_for_the_matrix_and_not_for_the_loss():
    plain, weighted, trained = [], [], []
    for seed in range(2):
        task, base = digits(seed)
        weight = base.linear_weights()["fc1"]
        fix, model = quarter_turn_fix(weight), base.copy()
        for found, delta in ((plain, truncate_svd(fix, 4)[0]), (weighted, truncate_for_data(fix, task.train[0], 4))):
            model.assign({"fc1.weight": (weight + delta).astype(np.float32)})
            found.append(model.accuracy(*task.test))
        _, records = fine_tune_digits(base, task, "LoRA", rank=4, targets=("fc1",), seed=seed, every=560)
        trained.append(list(records)[-1].metrics["accuracy"])
    assert np.mean(plain) + 0.05 < np.mean(weighted) < np.mean(trained)


def test_truncation_for_data_is_the_best_on_the_data_and_no_better_on_the_matrix():
    task, base = digits(0)
    x = task.train[0].astype(np.float64)
    fix = quarter_turn_fix(base.linear_weights()["fc1"]).astype(np.float64)
    plain, weighted = truncate_svd(fix, 5)[0], truncate_for_data(fix, x, 5)
    assert np.linalg.matrix_rank(weighted, tol=1e-6) == 5
    assert np.linalg.norm(x @ (fix - weighted).T) < 0.8 * np.linalg.norm(x @ (fix - plain).T)
    assert np.linalg.norm(fix - weighted) > np.linalg.norm(fix - plain)
    np.testing.assert_allclose(truncate_for_data(fix, np.eye(64), 5), plain, atol=1e-5)  # white data: Eckart-Young


def test_the_update_uses_few_directions_and_more_where_nothing_can_be_generalised():
    task, base = digits(0)
    model, records = fine_tune_digits(base, task, "full", every=560)
    list(records)
    drawn, _ = digits(0, "random labels")
    by_heart, records = fine_tune_digits(base, drawn, "full", steps=1500, every=1500)
    list(records)
    turned, heart = (energy_ranks(weight_changes(base, other)["fc2"]) for other in (model, by_heart))
    weight = energy_ranks(base.linear_weights()["fc2"])
    assert turned[0] < 0.8 * heart[0] and heart[0] < 0.8 * weight[0]
    assert turned[1] < heart[1] < weight[1]


def test_energy_ranks():
    assert energy_ranks(np.diag([3.0, 3.0, 3.0, 3.0])) == (pytest.approx(4), 4)
    assert energy_ranks(np.diag([3.0, 1.0, 0.0])) == (pytest.approx(np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1))), 1)
    assert energy_ranks(np.diag([3.0, 1.0, 0.0]), 0.95)[1] == 2


def test_changes_of_an_adapted_model_have_its_rank():
    task, base = digits(0)
    model, records = fine_tune_digits(base, task, "LoRA", rank=3, steps=20)
    list(records)
    changes = weight_changes(base, model)
    assert list(changes) == ["fc1", "fc2", "fc3", "fc4"]
    assert all(np.linalg.matrix_rank(delta, tol=1e-5) == 3 for delta in changes.values())


def test_names_start_of_a_run():
    base = CharTransformer.pretrained()
    reached = {}
    for method, settings in {"LoRA": {"targets": QUERY_VALUE}, "full": {}, "layer norms": {}}.items():
        _, records = fine_tune_names(base, method, steps=40, every=40, **settings)
        *_, last = records
        assert 3.0 < last.metrics["male"] < 3.7 and last.metrics["female"] > 2.62
        reached[method] = last.metrics["male"]
    assert reached["full"] < min(reached["LoRA"], reached["layer norms"])
    assert set(NAME_RATES) >= set(DIGIT_RATES)


def test_the_names_to_learn_from_may_be_any():
    _, records = fine_tune_names(CharTransformer.pretrained(), "last layer", words=["ada"] * 70, steps=40, every=40)
    *_, last = records
    assert last.loss < 0.5 and last.metrics["male"] > 4


def test_a_method_that_does_not_exist_is_refused():
    task, base = digits(0)
    with pytest.raises(ValueError, match="method must be one of"):
        fine_tune_digits(base, task, "magic", lr=0.1)
