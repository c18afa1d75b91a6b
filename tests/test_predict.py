"""A prediction waits, then compares."""

import pytest

from lora_edu.classroom import predict


def number():
    return predict("How many?", low=0, high=63, unit=" weights")


def test_unanswered_is_a_state_of_its_own_with_stable_text():
    guess = number()
    reveal = guess.reveal(24, "A third.")
    assert guess.answer is None
    assert str(reveal) == str(number().reveal(24, "A third."))
    assert "24" not in str(reveal)
    assert len(reveal.widget.children) == 1, "no picture yet"


def test_committing_shows_the_guess_beside_the_truth():
    guess = number()
    reveal = guess.reveal(24, "A third.")
    guess.control.value = 10
    assert guess.answer is None, "moving the slider is not yet an answer"
    guess.widget.children[1].children[1].click()
    assert guess.answer == 10
    assert str(reveal) == "you said 10 weights, it is 24 weights: 14 too low. A third."
    assert bytes(reveal.widget.children[1].value).startswith(b"\x89PNG")


@pytest.mark.parametrize(("answer", "verdict"), [(40, "16 too high"), (25, "close"), (24, "close")])
def test_the_verdict_says_how_far_and_which_way(answer, verdict):
    guess = number()
    reveal = guess.reveal(24, "A third.")
    guess.commit(answer)
    assert verdict in str(reveal)


def test_a_choice_says_whether_it_was_right():
    guess = predict("Which?", choices=["up", "down"])
    reveal = guess.reveal("down", "It falls.")
    guess.control.value = "up"
    assert str(reveal) == "down: you said 'up'. It falls."
    guess.control.value = "down"
    assert str(reveal) == "down: as you said. It falls."


def test_the_text_form_is_what_a_saved_notebook_keeps():
    assert number()._repr_mimebundle_()["text/plain"] == "predict: How many?"
    assert "no prediction yet" in number().reveal(1, "")._repr_mimebundle_()["text/plain"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict("?"), "give either choices, or low and high"),
        (lambda: predict("?", low=1), "give either choices, or low and high"),
        (lambda: predict("?", low=0, high=1, choices=["a"]), "give either choices"),
        (lambda: predict("?", low=2, high=1), "low must be below high, got 2 and 1"),
        (lambda: predict("?", low=0, high=1).commit(2), "answer must lie between 0 and 1, got 2"),
        (lambda: predict("?", choices=["a", "b"]).commit("c"), "answer must be one of a, b, got 'c'"),
        (lambda: predict("?", choices=["a", "b"]).reveal("c", ""), "truth must be one of a, b, got 'c'"),
    ],
)
def test_bad_questions_and_answers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
