r"""WordPiece: from text to the numbers of a vocabulary, as BERT does it.

    text -> lower case without accents -> words and punctuation -> pieces, longest match first -> ids

Source: Devlin et al. 2018, *BERT*, and the `BertTokenizer` of Hugging Face (`tokenization_bert.py`).
"""

import unicodedata
from collections.abc import Iterable, Mapping

LONGEST_WORD = 100  # characters; anything longer is unknown
CJK = [
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
]


class WordPiece:
    r"""A tokenizer from a vocabulary.

    Parameters
    ----------
    vocabulary : iterable of str
        The pieces; the position is the id. `##` marks a piece that continues a word.
    longest : int
        Ids a text may have, [CLS] and [SEP] included; the rest is cut off.
    """

    def __init__(self, vocabulary: Iterable[str], longest: int = 256):
        self.pieces = list(vocabulary)
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self.longest = longest
        missing = {"[CLS]", "[SEP]", "[UNK]"} - self.ids.keys()
        if missing:
            raise ValueError(f"vocabulary must hold {', '.join(sorted(missing))}")

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, without [CLS] and [SEP]."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        return [piece for word in words(text) for piece in split_word(word, self.ids)]

    def encode(self, text: str) -> list[int]:
        """[CLS], the ids of the pieces, [SEP]. Such a mark written in the text is text, not a mark."""
        pieces = ["[CLS]", *self.tokenize(text)[: self.longest - 2], "[SEP]"]
        return [self.ids[piece] for piece in pieces]


def split_word(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """The longest piece that starts the word, then the longest that continues it, …; [UNK] if one step finds none."""
    if len(word) > LONGEST_WORD:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                break
        else:
            return ["[UNK]"]
        pieces.append(piece)
        start = end
    return pieces


def words(text: str) -> list[str]:
    """Lower-case words without accents; each punctuation mark and each Chinese character is a word."""
    cleaned = "".join(" " if _is_space(c) else f" {c} " if _is_cjk(c) else c for c in text if not _is_dropped(c))
    decomposed = unicodedata.normalize("NFD", cleaned)
    plain = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()
    return "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


def _is_space(c) -> bool:
    return c in "\t\n\r" or c.isspace()


def _is_dropped(c) -> bool:
    return c in "\0\ufffd" or (unicodedata.category(c)[0] == "C" and not _is_space(c))


def _is_punctuation(c) -> bool:
    return (c.isascii() and c.isprintable() and not c.isalnum() and c != " ") or unicodedata.category(c)[0] == "P"


def _is_cjk(c) -> bool:
    return any(first <= ord(c) <= last for first, last in CJK)
