"""Every exercise accepts its solution, names every known mistake, and stays calm."""

import importlib
import pkgutil

import numpy as np
import pytest

from lora_edu.classroom import TODO, check
from lora_edu.classroom.check.engine import Exercise

EXERCISES = [getattr(check, name) for name in check.__all__]
MISTAKES = [(exercise, sentence) for exercise in EXERCISES for sentence in exercise.wrong]


def test_every_exercise_of_every_chapter_is_offered():
    found = set()
    for module in pkgutil.iter_modules(check.__path__):
        members = vars(importlib.import_module(f"{check.__name__}.{module.name}")).values()
        found |= {member.name for member in members if isinstance(member, Exercise)}
    assert found == set(check.__all__)
    assert all(exercise.name == name for exercise, name in zip(EXERCISES, check.__all__, strict=True))


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_solution_is_right(exercise):
    result = exercise(exercise.solution)
    assert result.status == "right", str(result)
    assert str(len(exercise.cases)) in str(result)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_a_stub_is_not_attempted(exercise):
    assert exercise(lambda *_: TODO).status == "not attempted"


@pytest.mark.parametrize(
    ("exercise", "sentence"), MISTAKES, ids=lambda v: v.name if isinstance(v, Exercise) else v[:30]
)
def test_a_known_mistake_is_wrong_and_named(exercise, sentence):
    with np.errstate(all="ignore"):
        result = exercise(exercise.wrong[sentence])
    assert result.status == "wrong"
    assert sentence in str(result)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_every_mistake_gets_its_own_sentence(exercise):
    for sentence, variant in exercise.wrong.items():
        for other, another in exercise.wrong.items():
            if other != sentence:
                with np.errstate(all="ignore"):
                    assert not all(exercise._agrees(variant, another, case) for case in exercise.cases)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
@pytest.mark.parametrize("answer", [None, "text", object(), np.zeros(0), np.nan], ids=str)
def test_nonsense_is_wrong_without_an_exception(exercise, answer):
    assert exercise(lambda *_: answer).status == "wrong"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_an_answer_that_raises_is_told_what_it_raised(exercise):
    def raises(*_):
        raise KeyError("lora_a")

    result = exercise(raises)
    assert result.status == "wrong" and "KeyError" in str(result) and "lora_a" in str(result)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_a_small_error_in_one_case_is_found(exercise):
    last = len(exercise.cases) - 1
    calls = iter(range(10**6))

    def almost(*arguments):
        answer = np.array(exercise.solution(*arguments), np.float64)
        return answer + (np.max(np.abs(answer)) + 1) * 1e-3 if next(calls) == last else answer

    assert exercise(almost).status == "wrong"


def test_an_answer_may_change_its_arguments_without_harm():
    def greedy(codes):
        answer = check.pack_high_first.solution(codes)
        codes[:] = 0
        return answer

    assert check.pack_high_first(greedy).status == "right"
    assert check.pack_high_first(greedy).status == "right"
