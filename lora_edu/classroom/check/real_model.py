"""Exercises of the chapter on a real model."""

import numpy as np

from lora_edu.classroom.check.engine import Exercise


def _word_ids(word, vocabulary, *, longest_first=True, mark="##", whole=True):
    ids, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1) if longest_first else range(start + 1, len(word) + 1)
        pieces = [(mark if start else "") + word[start:end] for end in ends]
        found = [piece for piece in pieces if piece in vocabulary]
        if not found:
            return [vocabulary.index("[UNK]")] if whole else [*ids, vocabulary.index("[UNK]")]
        ids.append(vocabulary.index(found[0]))
        start += len(found[0]) - (len(mark) if start else 0)
    return ids


word_ids = Exercise(
    "word_ids",
    _word_ids,
    [
        ("tuning", ("[UNK]", "t", "tune", "tun", "##ing", "##in", "##g")),
        ("rank", ("[UNK]", "rank", "r", "##ank")),
        ("lora", ("[UNK]", "lo", "ra", "##r", "##a", "##ra")),
        ("nfx", ("[UNK]", "n", "##f", "nf", "##4")),
        ("aaaaa", ("[UNK]", "a", "aa", "##a", "##aa")),
        ("q", ("x", "##q", "[UNK]")),
    ],
    {
        "the shortest match was taken first; try the longest piece, then shorten it": lambda word, vocabulary: (
            _word_ids(word, vocabulary, longest_first=False)
        ),
        "a piece inside a word was looked up without ##; only the first piece goes without": (
            lambda word, vocabulary: _word_ids(word, vocabulary, mark="")
        ),
        "a word that cannot be finished keeps its first pieces; the whole word becomes one [UNK]": (
            lambda word, vocabulary: _word_ids(word, vocabulary, whole=False)
        ),
    },
)


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _mean(states, mask):
    return (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)


_rng = np.random.default_rng(7)


def _padded(*lengths, size=4):
    """States of sentences of these lengths, padded to the longest with numbers that are not zero, and the mask."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.float64)
    return _rng.standard_normal((len(lengths), max(lengths), size)) + 0.5, mask


masked_embedding = Exercise(
    "masked_embedding",
    lambda states, mask: _unit(_mean(states, mask)),
    [_padded(3, 5), _padded(1, 7, 4, size=3), _padded(4), _padded(2, 2, 9, size=5)],
    {
        "the padding was averaged too; multiply by the mask before you add up": lambda states, mask: _unit(
            states.mean(axis=1)
        ),
        "the length is not 1; divide by the norm after the mean": _mean,
        "every token was brought to length 1 before the mean; only the mean is": lambda states, mask: _unit(
            _mean(_unit(states), mask)
        ),
        "this is the first token alone; this model was trained for the mean of all": lambda states, mask: _unit(
            states[:, 0]
        ),
    },
    tolerance=1e-6,
)


def _nearest(rows, others, *, itself=False):
    cosines = rows @ others.T
    if not itself:
        cosines = cosines - 1e9 * np.eye(len(rows))
    return cosines.argmax(axis=1)


def _agreement(before, after):
    before, after = _unit(before), _unit(after)
    return np.mean(_nearest(before, before) == _nearest(after, after))


def _agreement_unscaled(before, after):
    return np.mean(_nearest(before, before) == _nearest(after, after))


def _agreement_with_itself(before, after):
    before, after = _unit(before), _unit(after)
    return np.mean(_nearest(before, before, itself=True) == _nearest(after, after, itself=True))


def _agreement_across(before, after):
    before, after = _unit(before), _unit(after)
    return np.mean(_nearest(before, before) == _nearest(before, after))


def _agreement_of_numbers(before, after):
    best = [(rows @ rows.T - 1e9 * np.eye(len(rows))).max(axis=1) for rows in (_unit(before), _unit(after))]
    return np.mean(np.abs(best[0] - best[1]) < 0.05)


def _moved(count, size, noise):
    """Rows of different lengths, and what became of them."""
    before = _rng.standard_normal((count, size)) * _rng.uniform(0.5, 3, (count, 1))
    return before, before + noise * _rng.standard_normal((count, size))


neighbour_agreement = Exercise(
    "neighbour_agreement",
    _agreement,
    [_moved(20, 5, 0.7), _moved(33, 3, 0.4), _moved(7, 4, 1.5), _moved(50, 8, 0)],
    {
        "each sentence was its own nearest neighbour; take the diagonal out first": _agreement_with_itself,
        "long rows win every product; divide each row by its length, then multiply": _agreement_unscaled,
        "neighbours of before were looked for among after; look for them within each set": _agreement_across,
        "cosines were compared; the question is whether it is the same neighbour": _agreement_of_numbers,
    },
    tolerance=1e-9,
)
