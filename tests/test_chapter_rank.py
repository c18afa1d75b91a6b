r"""What the chapter on rank states, computed again: against published numbers, closed forms and NumPy's own SVD."""

import math

import numpy as np
import pytest

from lora_edu import LoraLinear, effective_rank, subspace_similarity, truncate_svd
from lora_edu.explorers import rank as explore

# Hu et al. 2021: width, layers, matrices, rank, and the count in millions with as many digits as the paper prints
PRINTED = [
    ("RoBERTa base", 768, 12, 2, 8, "0.3"),  # table 2
    ("RoBERTa large", 1024, 24, 2, 8, "0.8"),
    ("DeBERTa XXL", 1536, 48, 2, 16, "4.7"),
    ("GPT-3, q v", 12288, 96, 2, 1, "4.7"),  # table 4 and section 5.5
    ("GPT-3, q v", 12288, 96, 2, 8, "37.7"),
    ("GPT-3, q k v o", 12288, 96, 4, 4, "37.7"),  # table 15
]
SLIPS = [
    ("GPT-2 M", 1024, 24, 2, 4, "0.35", 393_216),  # table 3
    ("GPT-2 L", 1280, 36, 2, 4, "0.77", 737_280),
    ("GPT-3, q k v o", 12288, 96, 4, 2, "37.7", 18_874_368),  # appendix D.4
]


def millions(count: int, like: str) -> str:
    """`count` in millions, with the digits of `like`."""
    return f"{count / 1e6:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize(("model", "width", "layers", "matrices", "rank", "printed"), PRINTED)
def test_the_formula_gives_the_counts_that_the_paper_prints(model, width, layers, matrices, rank, printed):
    count = layers * matrices * explore.compute_cost(rank, width, width)["trained"]
    assert millions(count, printed) == printed
    assert millions(count // 2, printed) != printed  # A alone would not


@pytest.mark.parametrize(("model", "width", "layers", "matrices", "rank", "printed", "count"), SLIPS)
def test_the_slips_of_the_paper_are_slips(model, width, layers, matrices, rank, printed, count):
    assert layers * matrices * explore.compute_cost(rank, width, width)["trained"] == count
    assert millions(count, printed) != printed


def test_the_chapter_lists_these_rows_and_marks_the_three_slips():
    rows = {row["name"]: row for row in explore.compute_paper()}
    assert len(rows) == len(PRINTED) + len(SLIPS)
    assert sorted(row["computed"] for row in rows.values() if not row["agrees"]) == sorted(count for *_, count in SLIPS)
    for model, _, _, _, rank, printed, *_ in PRINTED + SLIPS:
        assert any(
            model in name and f"r = {rank}" in name and row["printed_text"] == printed + "M"
            for name, row in rows.items()
        )


def test_gpt3_with_rank_4_takes_the_papers_35_megabytes():
    numbers = 96 * 2 * explore.compute_cost(4, 12288, 12288)["trained"]
    assert numbers == 18_874_368 and 2 * numbers == 36 * 2**20
    assert 350e9 / (2 * numbers) == pytest.approx(10_000, rel=0.1)


@pytest.mark.parametrize(("rank", "in_features", "out_features"), [(8, 4096, 4096), (1, 3, 7), (16, 1536, 384)])
def test_the_cost_is_that_of_two_thin_arrays_and_breaks_even_where_it_says(rank, in_features, out_features):
    cost = explore.compute_cost(rank, in_features, out_features)
    assert cost["trained"] == np.zeros((rank, in_features)).size + np.zeros((out_features, rank)).size
    below, above = math.ceil(cost["break_even"]) - 1, math.floor(cost["break_even"]) + 1
    assert below * (in_features + out_features) < in_features * out_features < above * (in_features + out_features)


def test_rank_8_of_4096_is_0_391_percent_and_breaks_even_at_2048():
    cost = explore.compute_cost(8, 4096, 4096)
    assert (cost["trained"], cost["full"], cost["break_even"]) == (65_536, 16_777_216, 2048)
    assert 100 * cost["trained"] / cost["full"] == pytest.approx(0.391, abs=0.0005)


def test_a_rank_above_the_smaller_side_is_lowered_to_it():
    cost = explore.compute_cost(4096, 64, 12288)
    assert cost["rank"] == 64 and cost["trained"] > cost["full"]


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_a_product_of_rank_r_has_r_singular_values(rank):
    layer = LoraLinear(np.zeros((48, 40)), rank=rank)
    layer.lora_b = np.random.default_rng(0).standard_normal((48, rank))
    singular = np.linalg.svd(layer.delta_weight(), compute_uv=False)
    assert np.all(singular[rank:] < 1e-14 * singular[0]) and singular[rank - 1] > 1e-3 * singular[0]


@pytest.mark.parametrize("name", explore.MATRICES)
def test_what_is_left_lies_on_the_eckart_young_floor(name):
    weight = explore.matrix(name)
    singular = np.linalg.svd(weight, compute_uv=False)
    for rank in (1, 32, 200):
        floor = math.sqrt(np.sum(singular[rank:] ** 2))
        packaged, reported = truncate_svd(weight, rank)
        assert np.linalg.norm(weight - packaged) == pytest.approx(floor, rel=1e-12)
        assert reported == pytest.approx(floor, rel=1e-12)
        assert explore.left_over(name)[rank] == pytest.approx(floor / np.linalg.norm(weight), abs=1e-12)


@pytest.mark.parametrize("name", explore.MATRICES)
def test_no_other_choice_of_directions_gets_below_the_floor(name):
    floor = explore.left_over(name)
    inner = slice(1, 384)
    assert np.all(explore.random_left_over(name)[:, inner] > floor[inner])
    assert np.all(explore.largest_rows_left_over(name)[inner] > floor[inner])
    expected = np.sqrt(1 - np.arange(385) / 384)
    assert explore.random_left_over(name).mean(axis=0) == pytest.approx(expected, abs=0.02)


def test_the_curves_of_the_other_choices_are_those_of_the_matrices_themselves():
    weight = explore.matrix("query")
    norm = np.linalg.norm(weight)
    for rank in (12, 96):
        basis = explore.random_directions(3)[:, :rank]
        left = np.linalg.norm(weight - basis @ (basis.T @ weight)) / norm
        assert explore.random_left_over("query")[3, rank] == pytest.approx(left, rel=1e-12)
        rows = explore.largest_rows_wrong(weight, rank)
        assert np.linalg.matrix_rank(rows) == rank
        assert explore.largest_rows_left_over("query")[rank] == pytest.approx(np.linalg.norm(weight - rows) / norm)


@pytest.mark.parametrize(
    ("name", "left", "directions"),
    [("query", 0.77, 267), ("FFN down", 0.84, 356), ("trained update", 0.07, 37), ("random", 0.85, 309)],
)
def test_what_the_chapter_says_of_each_matrix_at_rank_32(name, left, directions):
    assert explore.compute_floor(name, 32)["left"] == pytest.approx(left, abs=0.005)
    assert effective_rank(explore.matrix(name)) == pytest.approx(directions, abs=0.5)


def test_the_photograph_is_what_the_text_says():
    left = {rank: explore.compute_fill_in("photograph", rank)["left"] for rank in (1, 4, 8, 16)}
    assert [round(100 * share) for share in left.values()] == [72, 49, 36, 26]
    assert 8 * (256 + 256) / 256**2 == 0.0625


def test_the_product_shown_is_the_best_approximation_of_the_part_shown():
    for name in explore.TARGETS:
        numbers = explore.compute_fill_in(name, 8)
        rows, columns = numbers["product"].shape
        best = truncate_svd(explore.matrix(name), 8)[0][:rows, :columns]
        assert numbers["product"] == pytest.approx(best, abs=1e-12 * np.abs(best).max() + 1e-12)
        assert np.abs(numbers["B"]).max() <= 1 and np.abs(numbers["A"]).max() <= 1


def test_the_networks_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(2)
    shapes = ((384, 64), (384, 384), (10, 384))
    network = explore.Network(*(rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes))
    x, labels = rng.standard_normal((64, 64)), rng.integers(0, 10, 64)

    def loss(moved):  # the batch that one step of seed 5 draws
        batch = np.random.default_rng(5).integers(0, 64, 64)
        scores = moved.activations(x[batch])[-1]
        scores = scores - scores.max(axis=1, keepdims=True)
        return np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(64), labels[batch]])

    after = explore.trained(network, x, labels, steps=1, seed=5)
    for layer in range(3):
        gradient = (network[layer] - after[layer]) / 0.1
        direction = rng.standard_normal(gradient.shape)
        sides = [network._replace(**{network._fields[layer]: network[layer] + e * direction}) for e in (1e-5, -1e-5)]
        assert (loss(sides[0]) - loss(sides[1])) / 2e-5 == pytest.approx(np.sum(gradient * direction), rel=1e-6)


def test_the_network_learns_the_turned_digits():
    tuned = explore.fine_tuned()
    assert tuned["before"] < 0.25 and tuned["after"] > 0.75
    assert effective_rank(tuned["shuffled"]) < 40


def brute_force_similarity(a, b, i, j):
    """φ(i, j) from the principal angles between the two spans."""
    first = np.linalg.svd(a)[2][:i].T
    second = np.linalg.svd(b)[2][:j].T
    return np.sum(np.linalg.svd(first.T @ second, compute_uv=False) ** 2) / min(i, j)


def test_the_similarity_is_the_mean_squared_cosine_of_the_principal_angles():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 11)), rng.standard_normal((20, 11))
    phi = subspace_similarity(a, b)
    assert phi.shape == (6, 11)
    for i, j in ((1, 1), (2, 5), (6, 3), (6, 11)):
        assert phi[i - 1, j - 1] == pytest.approx(brute_force_similarity(a, b, i, j), abs=1e-12)
    assert phi[:, -1] == pytest.approx(1, abs=1e-12)  # everything lies in the whole space
    assert subspace_similarity(b, a) == pytest.approx(phi.T, abs=1e-12)


def test_the_similarity_is_1_with_itself_0_for_orthogonal_and_blind_to_scale_sign_and_output_directions():
    a = np.random.default_rng(1).standard_normal((5, 9))
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((5, 5)))[0]
    assert np.diag(subspace_similarity(a, a)) == pytest.approx(1, abs=1e-12)
    assert np.diag(subspace_similarity(a, -3 * turn @ a)) == pytest.approx(1, abs=1e-12)
    apart = subspace_similarity(np.eye(2, 9), np.eye(3, 9, k=4))
    assert apart == pytest.approx(0, abs=1e-12)
    assert subspace_similarity(np.outer([1, 2], a[0]), a).shape == (1, 5)  # rank 1: one direction


@pytest.mark.parametrize(("i", "j"), [(1, 1), (4, 16), (32, 32)])
def test_random_subspaces_share_max_i_j_over_in(i, j):
    rng = np.random.default_rng(3)
    draws = [subspace_similarity(*rng.standard_normal((2, 32, 384)))[i - 1, j - 1] for _ in range(60)]
    assert explore.expected_similarity(i, j) == max(i, j) / 384
    assert np.mean(draws) == pytest.approx(max(i, j) / 384, abs=5 * np.std(draws) / math.sqrt(60))
    assert np.mean(draws) != pytest.approx(min(i, j) / 384 if i != j else 1 / min(i, j), rel=0.5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "one number of columns"),
        (np.zeros((2, 3)), np.ones((2, 3)), "all zero"),
        (np.ones(3), np.ones((2, 3)), "two axes"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "finite"),
    ],
)
def test_the_similarity_refuses_what_has_no_directions(a, b, message):
    with pytest.raises(ValueError, match=message):
        subspace_similarity(a, b)


def test_what_the_chapter_says_of_shared_directions():
    at = {name: explore.compute_overlap(name, 8, 8)["value"] for name in explore.PAIRS}
    updates, shuffled, copy, chance = (at[name] for name in explore.PAIRS)
    assert copy > 0.9 > updates > 0.5 > shuffled > 0.15 > 0.05 > chance
    phi = explore.similarity("two trained updates")
    assert phi[0, 15] > 0.9 and phi[15, 0] > 0.9
