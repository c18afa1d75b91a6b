r"""The README: its code runs and prints what it shows, its links lead somewhere, and it stays short."""

import contextlib
import io
import re

import pytest

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
MOST_LINES = 150


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def examples(text: str) -> list[tuple[str, str | None]]:
    r"""Each `python` block with the output block (`text` or no language) that follows it, or None."""
    blocks = BLOCK.findall(text)
    found = []
    for index, (language, body) in enumerate(blocks):
        if language == "python":
            following = blocks[index + 1] if index + 1 < len(blocks) else ("end", "")
            found.append((body, following[1] if following[0] in ("", "text") else None))
    return found


def test_code_prints_what_the_readme_shows(readme):
    found = examples(readme)
    assert any(output is not None for _, output in found), "the README shows no output of its code"
    names: dict = {"__name__": "readme"}
    for code, output in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        assert printed.getvalue() == (output or "")


def test_examples_are_paired_with_their_outputs():
    text = "```python\na\n```\n\n```text\nb\n```\n\n```bash\nc\n```\n\n```python\nd\n```\n\n```python\ne\n```\n"
    assert examples(text) == [("a\n", "b\n"), ("d\n", None), ("e\n", None)]


def test_it_stays_short(readme):
    assert len(readme.splitlines()) <= MOST_LINES


def test_relative_links_and_pictures_exist(root, readme):
    targets = {a or b for a, b in LINK.findall(readme)}
    local = {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)}
    assert local, "the README links to nothing of its own"
    assert [target for target in sorted(local) if not (root / target).exists()] == []
