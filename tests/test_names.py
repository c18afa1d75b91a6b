r"""The name lists and the digit tasks: what they hold, and that nothing is on both sides of a split."""

import hashlib
from importlib.resources import files

import numpy as np
import pytest

from lora_edu.datasets import digits
from lora_edu.datasets.digit_tasks import digit_task, quarter_turn, shifted, turned
from lora_edu.datasets.name_lists import decode_names, encode_names, names


def test_the_lists_are_as_published():
    found = {
        kind: hashlib.sha256((files("lora_edu.datasets") / f"names_{kind}.txt").read_bytes()).hexdigest()[:12]
        for kind in ("female", "male")
    }
    assert found == {"female": "f2ee53b7adf8", "male": "35cf3ca775b2"}
    text = (files("lora_edu.datasets") / "README.md").read_text(encoding="utf-8")
    assert "`names_female.txt`" in text and "`names_male.txt`" in text and "PDDL" in text


def test_no_name_stands_on_two_sides():
    parts = [part for kind in ("female", "male") for part in names(kind)]
    assert [len(part) for part in parts] == [4125, 400, 400, 2677, 400, 400]
    every = [name for part in parts for name in part]
    assert len(set(every)) == len(every)
    assert all(name.isalpha() and name.islower() and 2 <= len(name) <= 12 for name in every)


def test_the_split_is_fixed():
    assert names("female").test[:3] == ("griselda", "phil", "ilene")
    assert names("male").train[:3] == ("crawford", "temp", "menard")
    assert names("male") is names("male")
    with pytest.raises(ValueError, match="kind must be 'female' or 'male', got 'other'"):
        names("other")


def test_encoding():
    ids, targets = encode_names(["ada", "z", ""], length=5)
    assert ids.tolist() == [[0, 1, 4, 1, 0], [0, 26, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert targets.tolist() == [[1, 4, 1, 0, -1], [26, 0, -1, -1, -1], [0, -1, -1, -1, -1]]
    assert decode_names(ids) == ["ada", "z", ""]
    assert decode_names(encode_names(names("male").test)[0]) == list(names("male").test)
    for wrong in ("Ada", "ad.a", "abcde", "ä"):
        with pytest.raises(ValueError, match=r"words\[1\] must be 0 to 4 letters from a to z"):
            encode_names(["ada", wrong], length=5)
    with pytest.raises(TypeError, match="put it in brackets"):
        encode_names("ada")


def test_a_digit_serves_once():
    task = digit_task("relabel 5", seed=3)
    sizes = [len(y) for _, y in (task.pretrain, task.train, task.validation, task.test)]
    assert sizes == [900, 450, 100, 347]
    rows = np.concatenate([x for x, _ in (task.pretrain, task.train, task.validation, task.test)])
    images, _ = digits()
    whole = images.reshape(-1, 64) / np.float32(16)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, whole))
    assert rows.dtype == np.float32 and rows.min() == 0 and rows.max() == 1


def test_a_seed_draws_a_split_and_fewer_labels_are_the_first_of_more():
    one, again, other = digit_task(seed=1), digit_task(seed=1), digit_task(seed=2)
    assert np.array_equal(one.train[0], again.train[0]) and not np.array_equal(one.train[0], other.train[0])
    few = digit_task(labels=30, seed=1)
    assert np.array_equal(few.train[0], one.train[0][:30]) and np.array_equal(few.test[0], one.test[0])


def test_changes_change_what_they_say():
    upright, relabelled = digit_task("turn 0", seed=1), digit_task("relabel 5", seed=1)
    assert np.array_equal(upright.test[0], upright.upright[0])
    assert np.array_equal((upright.test[1] + 5) % 10, relabelled.test[1])
    turned_task = digit_task("turn 90", seed=1)
    assert np.array_equal(turned_task.test[0], upright.test[0][:, quarter_turn()])
    assert np.array_equal(turned_task.test[1], upright.test[1])
    assert np.array_equal(turned_task.pretrain[0], upright.pretrain[0])
    drawn = digit_task("random labels", seed=1)
    assert (drawn.train[1] == upright.train[1]).mean() < 0.2 and np.array_equal(drawn.test[1], upright.test[1])
    for wrong in ("turn", "turn left", "flip 1", "random"):
        with pytest.raises(ValueError, match="change must be like 'turn 90'"):
            digit_task(wrong)
    with pytest.raises(ValueError, match="labels must be at most 450, got 451"):
        digit_task(labels=451)


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 5])
def test_quarter_turns_are_exact(quarters):
    images = digits()[0][:3].astype(np.float32)
    assert np.array_equal(turned(images, 90 * quarters), np.rot90(images, quarters, axes=(1, 2)))


def test_turning_by_a_small_angle_moves_little_and_keeps_what_lies_inside():
    images = digits()[0][:200].astype(np.float32)
    assert turned(images, 20).dtype == np.float32
    assert np.abs(turned(images, 1e-4) - images).max() < 1e-2
    assert turned(images, 20).sum() == pytest.approx(images.sum(), rel=0.03)
    centre = np.zeros((1, 8, 8), np.float32)
    centre[0, 1, 6] = 1  # upper right: turning counter-clockwise takes it to the left
    left = turned(centre, 30)[0]
    column = (left.sum(0) * np.arange(8)).sum() / left.sum()
    assert column < 5.5
    np.testing.assert_allclose(turned(images, 89.9999), turned(images, 90), atol=1e-2)


def test_shifting_loses_what_leaves():
    image = np.arange(6).reshape(1, 2, 3)
    assert shifted(image, 1).tolist() == [[[0, 0, 1], [0, 3, 4]]]
    assert shifted(image, -2).tolist() == [[[2, 0, 0], [5, 0, 0]]]
