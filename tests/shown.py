"""Commands that a page of the documentation shows, to be run."""

import shlex
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def shown(page: str, begin: str, changed: Mapping[str, str]) -> list[str]:
    """The first command of docs/`page` that begins so, with words of this machine in place of the page's."""
    text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
    line = next(line for line in map(str.strip, text.splitlines()) if line.startswith(begin))
    words = shlex.split(line, comments=True)
    assert changed.keys() <= set(words)
    return [changed.get(word, word) for word in words]
