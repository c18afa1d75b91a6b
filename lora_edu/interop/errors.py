r"""One error for every file that is not what it should be, and texts that are safe to print."""

MAX_PRINTED = 400  # characters of a message: a hostile name does not flood the terminal


class FileFormatError(ValueError):
    r"""A file is corrupt, truncated, hostile, or of a kind that is not read here; the message is one line.

    Parameters
    ----------
    path : path or str
        The file.
    problem : str
        What is wrong with it, and what to do.
    """

    def __init__(self, path, problem: str):
        super().__init__(f"{printable(str(path))}: {printable(problem)}")


def printable(text: str, limit: int = MAX_PRINTED) -> str:
    r"""`text` on one line and without control characters: a name in a file may hold anything.

    >>> printable("q_proj\x1b[31m\n")
    'q_proj\\x1b[31m\\n'
    """
    shown = text if len(text) <= limit else text[:limit] + " ..."
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
