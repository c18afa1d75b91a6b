r"""An exercise compares the reader's function with the solution, case by case, and recognises known mistakes.

A stub returns `TODO`, which is neither right nor wrong; so a notebook nobody has worked on runs through.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


class _Todo:
    def __repr__(self):
        return "TODO"


TODO = _Todo()


@dataclass(frozen=True)
class Result:
    """What a check found: status "not attempted", "right" or "wrong", and the sentence for the reader."""

    exercise: str
    status: str
    detail: str

    def __str__(self):
        mark = {"not attempted": "…", "right": "✓", "wrong": "✗"}[self.status]
        return f"{mark} {self.exercise}: {self.status}. {self.detail}"

    __repr__ = __str__


@dataclass(frozen=True)
class Exercise:
    r"""An exercise; call it with the reader's function.

    Parameters
    ----------
    name : str
    solution : callable
        What the answer must agree with.
    cases : sequence of argument tuples
        Small, seeded, with the corners: odd sizes, zeros, ties.
    wrong : mapping of misconception to callable
        Each gives a different answer on some case; an answer that agrees with one gets its sentence.
    tolerance : float
        Largest difference allowed, relative to the largest entry of the solution; 0 means bit for bit.
    """

    name: str
    solution: Callable
    cases: Sequence[tuple]
    wrong: Mapping[str, Callable]
    tolerance: float = 0.0

    def __call__(self, answer: Callable) -> Result:
        """Run the cases; always returns a `Result`, whatever the function does."""
        if not callable(answer):
            return self._result("wrong", f"pass your function itself, without calling it: got {answer!r}")
        for case in self.cases:
            try:
                given = answer(*_copied(case))
            except Exception as error:  # the reader's code may raise anything, and wants to hear what
                return self._result("wrong", f"{_call(case)} raises {type(error).__name__}: {error}")
            if given is TODO:
                return self._result("not attempted", "Replace TODO, then run the cell again.")
            complaint = self._complaint(given, self.solution(*_copied(case)))
            if complaint:
                return self._result("wrong", f"{_call(case)}: {complaint}{self._diagnosis(answer)}")
        return self._result("right", f"{len(self.cases)} cases agree with the reference.")

    def _result(self, status, detail):
        return Result(self.name, status, detail)

    def _complaint(self, given, wanted) -> str:
        """What is wrong with one answer; empty if nothing is."""
        wanted = np.asarray(wanted)
        try:
            given = np.asarray(given)
            numbers = given.astype(np.float64)
        except (TypeError, ValueError):
            return f"expected numbers of shape {wanted.shape}, got {type(given).__name__}"
        if given.shape != wanted.shape:
            return f"expected shape {wanted.shape}, got {given.shape}"
        with np.errstate(invalid="ignore"):
            off = np.abs(numbers - wanted.astype(np.float64))
        off = np.where(np.isnan(off), np.inf, off)  # a single number works too
        allowed = self.tolerance * float(np.max(np.abs(wanted), initial=0))
        if off.max(initial=0) <= allowed:
            return ""
        worst = np.unravel_index(int(np.argmax(off)), off.shape)
        place = f" at {[int(i) for i in worst]}" if worst else ""
        return f"expected {_number(wanted[worst])}{place}, got {_number(given[worst])}"

    def _diagnosis(self, answer) -> str:
        for misconception, variant in self.wrong.items():
            if all(self._agrees(answer, variant, case) for case in self.cases):
                return f". Looks like this: {misconception}."
        return "."

    def _agrees(self, answer, variant, case) -> bool:
        try:
            given = answer(*_copied(case))
        except Exception:  # it agrees with no variant on a case it cannot do
            return False
        with np.errstate(all="ignore"):
            return not self._complaint(given, variant(*_copied(case)))


def _copied(case):
    return [argument.copy() if isinstance(argument, np.ndarray) else argument for argument in case]


def _call(case) -> str:
    shown = [f"array{argument.shape}" if isinstance(argument, np.ndarray) else repr(argument) for argument in case]
    return f"with ({', '.join(shown)})"


def _number(value) -> str:
    return f"{value:.9g}" if np.issubdtype(np.asarray(value).dtype, np.floating) else str(value)
