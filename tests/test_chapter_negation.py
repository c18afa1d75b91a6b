"""What the chapter on the word "not" states, recomputed: from the model, or from its tables where it is missing."""

import re

import numpy as np
import pytest

from lora_edu import LoraConfig
from lora_edu.datasets import negation_measured
from lora_edu.explorers import negation as explore
from lora_edu.models import minilm, negation
from lora_edu.models import negation_tables as stored
from lora_edu.models.adapting import adapt
from lora_edu.models.encoder import padded
from lora_edu.training import Adam, cross_entropy, minibatches, train, warmup_cosine

needs_model = pytest.mark.needs_model
HERO = stored.READ[0]


@pytest.fixture(scope="module")
def base():
    return negation.encoder(negation.the_probe())


@pytest.fixture(scope="module")
def trained(base):
    return negation.load_adapter(base, negation_measured())


def last(name):
    """The accuracies at the end of each run, by seed."""
    return negation_measured()[name][..., -1].astype(np.float64)


# Section 1: the task and the probe


def test_no_speech_and_no_president_is_in_both_sets():
    task = negation.task()
    assert (len(task.sentences), len(task.train), len(task.test), task.labels.sum()) == (490, 258, 232, 245)
    assert set(task.train) | set(task.test) == set(range(490))
    assert task.years[task.train].max() == 1992 and task.years[task.test].min() == 1993  # Bush, Clinton
    assert task.labels[task.train].mean() == task.labels[task.test].mean() == 0.5


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("No.", 1),
        ("We can't.", 1),
        ("It cannot be", 1),
        ("They tied a knot.", 0),
        ("Nor we.", 0),
        ("Know!", 0),
    ],
)
def test_the_label_is_a_word_list(sentence, label):
    assert negation.has_negation(sentence) == label


def test_folds_keep_a_speech_together():
    task = negation.task()
    years = task.years[task.train]
    fold = negation.folds(years)
    assert set(fold) == set(range(negation.FOLDS))
    assert all(len(set(fold[years == year])) == 1 for year in years)
    assert np.bincount(fold).min() > 40


def test_the_probe_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    e, y = rng.standard_normal((60, 5)), rng.integers(2, size=60)
    probe = negation.fit_probe(e, y, ridge=0.7)
    p = 1 / (1 + np.exp(-probe.score(e)))
    np.testing.assert_allclose(e.T @ (p - y) + 0.7 * probe.weight, 0, atol=1e-5)
    assert np.sum(p - y) == pytest.approx(0, abs=1e-5)
    large = negation.fit_probe(e, y, ridge=100.0)
    assert np.linalg.norm(large.weight) < np.linalg.norm(probe.weight) / 5


@needs_model
def test_the_probe_and_its_grid_are_what_the_model_gives():
    grid = negation.probe_grid(negation.embeddings(), ridges=(0.001, 0.3, 30.0))
    at = [negation.RIDGES.index(ridge) for ridge in grid["ridge"]]
    for name, values in grid.items():
        np.testing.assert_allclose(values, explore.probe_grid()[name][at], atol=0.005, err_msg=name)
    np.testing.assert_allclose(negation.the_probe().weight, negation_measured()["probe_weight"], atol=2e-3)


def test_the_probe_is_judged_honestly():
    grid, (share, error) = explore.probe_grid(), explore.line_to_beat()
    assert share * 232 == pytest.approx(203) and error == pytest.approx(0.0217, abs=1e-4)
    assert 0.865 < share < 0.885  # "about 87 %"
    assert grid["train"][0] == 1 and grid["test"][0] == pytest.approx(0.767, abs=0.001)  # the tempting number
    best = np.flatnonzero(grid["validation"] == grid["validation"].max())
    assert negation.RIDGE == pytest.approx(float(grid["ridge"][best[0]]))
    assert grid["test"].max() == pytest.approx(share)  # no other ridge would have done better


def test_the_letters_no_are_as_good_as_the_probe():
    task = negation.task()
    letters = np.array(["no" in sentence.lower() for sentence in task.sentences])
    assert np.mean(letters == task.labels) == pytest.approx(0.847, abs=0.001)
    assert abs(np.mean((letters == task.labels)[task.test]) - explore.line_to_beat()[0]) < 0.022


# Section 2: dilution


@needs_model
def test_the_embedding_moves_by_one_part_in_n_whichever_word_goes():
    moved, kept = negation.without_a_word(), explore.removed()
    for name, values in moved.items():
        np.testing.assert_allclose(values, kept[name], atol=1e-5, err_msg=name)
    assert set(kept) == {*moved, "constant"}


def test_not_moves_it_no_farther_than_another_word():
    moved = explore.removed()
    count = sum(re.search(r"\bnot\b", sentence) is not None for sentence in negation.task().sentences)
    assert len(moved["not"]) == count == 125
    assert moved["not"].mean() == pytest.approx(0.29, abs=0.005)
    assert moved["other"].mean() == pytest.approx(0.28, abs=0.005)
    difference = moved["not"] - moved["other"]
    assert abs(difference.mean()) < 2 * difference.std() / np.sqrt(count)  # "about the same"
    assert moved["constant"] == pytest.approx(4.6, abs=0.05)
    assert moved["constant"] == pytest.approx(np.mean(moved["not"] * moved["tokens"]))
    tokens = moved["tokens"]
    means = [moved["not"][(tokens >= a) & (tokens <= b)].mean() for a, b in ((9, 12), (13, 15), (16, 18), (19, 26))]
    assert means == pytest.approx([0.38, 0.33, 0.29, 0.22], abs=0.005)
    assert tokens.min() >= 9 and tokens.max() <= 26


# Section 3: votes


@needs_model
@pytest.mark.parametrize("sentence", [HERO, "No.", "a long one, " * 20])
def test_votes_add_up_to_the_score_and_looks_to_one(trained, sentence):
    for model in (trained, negation.at_strength(trained, 0.0)):
        read = negation.reading(model, sentence)
        assert read["contribution"].sum() + read["bias"] == pytest.approx(read["score"], abs=1e-4)
        assert read["attention"].sum() == pytest.approx(1, abs=1e-5)
        assert len(read["attention"]) == len(read["contribution"]) == len(read["pieces"])


@needs_model
def test_attention_received_is_a_mean_over_tokens_and_not_over_padding(base):
    encode = minilm.load().tokenizer.encode
    together = padded([encode(HERO), encode("No.")])
    base.forward(together)
    both = negation.attention_received(base)
    base.forward(together[1:, :4])
    alone = negation.attention_received(base)[0]
    np.testing.assert_allclose(both.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(both[1, : len(alone)], alone, atol=1e-6)
    assert (both[1, len(alone) :] == 0).all()


def test_hardly_anybody_looks_at_not_until_it_is_learned():
    before, now = explore.stored_sentence(0, 0.0), explore.stored_sentence(0, 1.0)
    where = before["pieces"].index("not")
    assert now["gains"] == where == 7 and before["tokens"] == 14
    assert before["now"]["attention"][where] == pytest.approx(0.02, abs=0.005)
    assert before["now"]["attention"][0] == pytest.approx(0.38, abs=0.008)
    assert now["now"]["attention"][where] > 5 * before["now"]["attention"][where]
    others = np.delete(before["now"]["contribution"], where)
    assert before["now"]["contribution"][where] > 0 > others.sum()
    assert (now["now"]["contribution"] > 0).all()  # all come to its side
    assert now["now"]["contribution"][where] > 2 * before["now"]["contribution"][where]
    assert before["probability"] < 0.5 < 0.95 < now["probability"]


# Section 4: training


@needs_model
def test_the_stored_readings_are_those_of_the_stored_adapter():
    for k, sentence in enumerate(stored.READ):
        for strength in (0.0, 0.5, 1.0):
            kept, fresh = explore.stored_sentence(k, strength), explore.compute_sentence(sentence, strength)
            assert fresh["pieces"] == kept["pieces"] and fresh["gains"] == kept["gains"]
            assert fresh["probability"] == pytest.approx(kept["probability"], abs=1e-3)
            for part in ("attention", "contribution"):
                np.testing.assert_allclose(fresh["now"][part], kept["now"][part], atol=1e-3)


@needs_model
def test_the_stored_adapter_does_what_the_table_says(trained):
    task = negation.task()
    share = negation.accuracy(negation.scores(trained, negation.ids()[task.test]), task.labels[task.test])
    assert share == pytest.approx(last("by_rank")[2, 0], abs=0.005)
    assert trained.trained_count == 36_864


def test_rank_four_lifts_the_probe_and_four_bits_do_not_matter():
    probe, error = explore.line_to_beat()
    ranks = last("by_rank").mean(axis=1)
    assert ranks[2] == pytest.approx(0.993, abs=0.001) and ranks.min() > 0.975  # "rank 1 will nearly do"
    assert last("qlora").mean() == pytest.approx(0.994, abs=0.001)
    assert abs(last("qlora").mean() - ranks[2]) < negation.standard_error(0.99, 232)
    assert (1 - last("by_rank")).max() < (1 - probe) / 3 and probe + 4 * error < last("by_rank").min()
    assert probe - negation_measured()["nf4_probe"] == pytest.approx(0.05, abs=0.003)


def test_sixteen_sentences_under_an_adapter_are_worth_more_than_258_under_a_probe():
    tables = negation_measured()
    assert tables["by_count"][0].min() > tables["probe_by_count"].max()
    assert (tables["by_count"].mean(axis=1) > tables["probe_by_count"].mean(axis=1) + 0.1).all()
    assert stored.COUNTS[0] == 16 and tables["probe_by_count"][-1].max() == pytest.approx(explore.line_to_beat()[0])


@needs_model
def test_the_notebooks_run_is_that_of_fine_tune_and_starts_from_the_probe(base):
    task, x = negation.task(), negation.ids()[negation.task().train]
    labels = task.labels[task.train]
    _, records = negation.fine_tune(base, x, labels)
    first = [next(records).loss, next(records).loss]
    config = LoraConfig(rank=4, alpha=8, target_modules=("query", "value"), init="kaiming")
    batches = list(minibatches(x, labels, size=16, steps=32))
    by_hand = train(adapt(base, config), batches, Adam(lr=3e-3), schedule=warmup_cosine(32, 4))
    assert first == [next(by_hand).loss, next(by_hand).loss]
    assert first[0] == pytest.approx(cross_entropy(base.forward(batches[0][0]), batches[0][1])[0], rel=1e-4)


# Section 5: strength


@needs_model
def test_strength_zero_is_the_frozen_model_and_one_the_trained(base, trained):
    few = negation.ids()[negation.task().test[:8]]
    with trained.without_adapter():
        frozen = trained.embed(few)
    assert np.array_equal(negation.at_strength(trained, 0.0).embed(few), frozen)
    np.testing.assert_allclose(frozen, base.embed(few), atol=1e-6)
    assert np.array_equal(negation.at_strength(trained, 1.0).embed(few), trained.embed(few))
    assert np.abs(trained.embed(few) - frozen).max() > 0.01


@needs_model
@pytest.mark.parametrize(
    ("sentence", "probe", "now"),
    [
        ("There is nothing to fear.", True, True),
        ("We can do it without help.", True, True),
        ("Nor will we wait.", True, False),
        ("They tied a knot.", False, False),
        ("It is not impossible.", True, True),
        ("He is unhappy.", True, False),
    ],
)
def test_tricky_sentences(sentence, probe, now):
    read = explore.compute_sentence(sentence, 1.0)
    assert (read["curve"][0] > 0.5, read["probability"] > 0.5) == (probe, now)


def test_only_is_taken_for_a_negation_because_of_the_company_it_keeps():
    task = negation.task()

    def labels(word):
        return [int(task.labels[k]) for k in task.train if re.search(rf"\b{word}\b", task.sentences[k].lower())]

    assert labels("only") == [1, 1, 1, 0]
    assert labels("nothing") == [] and set(labels("without")) == set(labels("nor")) == {1}
    before, now = explore.stored_sentence(2, 0.0), explore.stored_sentence(2, 1.0)
    assert abs(before["probability"] - 0.5) < 0.05 and now["probability"] > 0.7
    assert now["pieces"][now["gains"]] == "only" and not negation.has_negation(now["sentence"])
    assert (explore.stored_sentence(1, 1.0)["now"]["contribution"] < 0).all()  # without the word all vote against


@needs_model
@pytest.mark.parametrize("sentence", ["", "$x_1$ & <b>bold</b> not", "word " * 40])
def test_odd_sentences_are_read_and_told_without_their_markup(sentence):
    read = explore.compute_sentence(sentence, 1.0)
    told = explore.explain_sentence(read)
    assert "<b>" not in told and "--" not in told
    assert explore.plots.one_sentence(read, stored.STRENGTHS).png(50)


# Section 6: the last layer


def test_the_query_alone_is_enough_in_the_last_layer_and_the_value_over_six():
    probe, error = explore.line_to_beat()
    tables = negation_measured()
    both, query, value = tables["by_last_target"].mean(axis=1)
    assert both > 0.97 and query > 0.97 and value < probe + error
    both, query, value = tables["by_target"].mean(axis=1)
    assert both > 0.985 and value > 0.98 and 0.93 < query < value
    assert tables["by_depth"].min() > 0.97


@needs_model
def test_a_part_of_the_last_layers_table_is_recomputed():
    task = negation.task()
    upper = negation.under(negation.the_probe(), negation.last_layer())
    found = {}
    for name in ("query", "value"):
        model, records = negation.fine_tune(
            upper,
            task.train,
            task.labels[task.train],
            targets=negation.TARGETS[name],
            lr=negation.LAST_RATES[name],
        )
        assert len(list(records)) == 32
        found[name] = negation.accuracy(negation.scores(model, task.test), task.labels[task.test])
    kept = dict(zip(negation.TARGETS, negation_measured()["by_last_target"][:, 0], strict=True))
    assert found == pytest.approx({name: kept[name] for name in found}, abs=0.025)
    assert found["query"] > found["value"] + 0.05


@needs_model
def test_a_live_run_grows_beats_the_probe_and_repeats_itself():
    runs = [list(explore.run_last_layer(64, "query and value")) for _ in range(2)]
    assert [n["progress"] for n in runs[0]] == sorted(n["progress"] for n in runs[0])
    assert runs[0][-1]["progress"] == 1 and len(runs[0]) >= 2 * explore.LIVE_STEPS
    first, end = runs[0][0], runs[0][-1]
    assert first["looks"].tolist() == [0] and end["looks"].tolist() == [0, 8, 16, 24]
    assert end["trained"] == 2 * 4 * (384 + 384) and end["better"] == 1
    assert end["accuracies"][-1] > end["probe"] + 0.05 and end["attentions"][-1] > 2 * end["before"]
    assert all(np.array_equal(one["accuracies"], other["accuracies"]) for one, other in zip(*runs, strict=True))


@needs_model
def test_some_sentences_are_balanced_and_of_the_training_set():
    task = negation.task()
    for count in explore.LIVE_COUNTS:
        chosen = negation.some(count)
        assert len(set(chosen)) == count and set(chosen) <= set(task.train) and task.labels[chosen].mean() == 0.5
    assert not np.array_equal(negation.some(16, 0), negation.some(16, 1))
