"""Exercises of the chapter on the word "not"."""

import numpy as np

from lora_edu.classroom.check.engine import Exercise

_rng = np.random.default_rng(11)


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _votes(x, weight):
    return x @ weight / (len(x) * np.linalg.norm(x.mean(axis=0)))


def _sentence(tokens, size):
    return _rng.standard_normal((tokens, size)) + 0.4, _rng.standard_normal(size)


token_votes = Exercise(
    "token_votes",
    _votes,
    [_sentence(5, 4), _sentence(1, 3), _sentence(12, 7)],
    {
        "the tokens are not shared out: the mean divides by their number": lambda x, w: _votes(x, w) * len(x),
        "the length of the mean is missing: the embedding has length 1": lambda x, w: x @ w / len(x),
        "every token was brought to length 1; only their mean is": lambda x, w: _unit(x) @ w / len(x),
        "this is the length of the sum: take that of the mean": lambda x, w: (
            x @ w / (len(x) * np.linalg.norm(x.sum(axis=0)))
        ),
        "this is the whole score; one number a token is asked for": lambda x, w: _votes(x, w).sum(),
    },
    tolerance=1e-9,
)


def _shares(scores, length, *, mask=-np.inf, axis=-1):
    scores = np.where(np.arange(scores.shape[1]) < length, scores, scores * 0 + mask)
    share = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return share / share.sum(axis=axis, keepdims=True)


def _masked_late(scores, length):
    return _shares(scores, scores.shape[1]) * (np.arange(scores.shape[1]) < length)


def _rows_masked(scores, length):
    return _shares(scores, scores.shape[1]) * (np.arange(len(scores)) < length)[:, None]


attention_shares = Exercise(
    "attention_shares",
    _shares,
    [
        (_rng.standard_normal((4, 4)), 3),
        (_rng.standard_normal((5, 5)) * 3 - 1, 5),
        (_rng.standard_normal((6, 6)) + 200, 2),
        (_rng.standard_normal((3, 3)), 1),
    ],
    {
        "the padding was masked after the softmax: the rows no longer add up to 1": _masked_late,
        "a score of 0 is not out of sight, e⁰ is 1; use -np.inf": lambda s, n: _shares(s, n, mask=0),
        "the padding still takes part: cut its columns": lambda s, n: _shares(s, s.shape[1]),
        "the padding's own rows were cut, but nobody looks from there; cut its columns": _rows_masked,
        "this runs down the columns; each row, one token that looks, adds up to 1": lambda s, n: _shares(s.T, n).T,
    },
    tolerance=1e-9,
)


def _mean_gradient(x, upstream, *, projected=True, shared=True, length=True):
    mean = x.mean(axis=0)
    norm = np.linalg.norm(mean)
    e = mean / norm
    g = upstream - e * (e @ upstream) if projected else upstream
    g = g / norm if length else g
    return np.tile(g / len(x) if shared else g, (len(x), 1))


mean_gradient = Exercise(
    "mean_gradient",
    _mean_gradient,
    [_sentence(4, 5), _sentence(1, 3), _sentence(9, 6)],
    {
        "the length is fixed at 1, so what points along e does nothing: take out e (e · G)": lambda x, g: (
            _mean_gradient(x, g, projected=False)
        ),
        "each token is one of many: divide by their number": lambda x, g: _mean_gradient(x, g, shared=False),
        "the length of the mean is missing: dm = (…) / ‖m‖": lambda x, g: _mean_gradient(x, g, length=False),
        "the sign is turned: this is the step downhill": lambda x, g: -_mean_gradient(x, g),
        "one row is right, but every token has one: shape (tokens, size)": lambda x, g: _mean_gradient(x, g)[0],
    },
    tolerance=1e-9,
)
