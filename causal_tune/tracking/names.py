"""Names from outside (generators, views) as parts of MLflow's metric names: one to one, whatever they are.

MLflow takes letters, digits and a few signs, treats a slash as a folder, and refuses names that a file system would
shorten. What it does not take is written as spreadsheets write it in XML: `_x` and the character's number in
hexadecimal and `_` (ISO 9075-14).
"""

import hashlib
import re

__all__ = ["part"]

MAX_LENGTH = 150
"""MLflow's limit is 250 for the whole name; the longest that stands around a part is `best/val_generators/` and
`/accuracy_val_threshold`."""

_PLAIN = r"\w. -"
_ESCAPED = re.compile(
    # also what would read as an escape
    rf"[^{_PLAIN}]|_(?=x[0-9a-f]*(?:_|[^{_PLAIN}]))"
)
_HASH_MARK = "_x_"
"""In no escaped name: there, digits stand between the `x` and the `_`."""


def part(name: str) -> str:
    r"""`name` as one part of a metric's name; a plain one stays as it is.

    A long one ends in a hash in place of the rest.

    >>> part("glide_50"), part("glide@50"), part("../up"), part("cycle gan+")
    ('glide_50', 'glide_x40_50', '.._x2f_up', 'cycle gan_x2b_')
    >>> part("glide_x40_50")
    'glide_x5f_x40_50'
    """
    escaped = _ESCAPED.sub(lambda found: _escape(found[0]), name)
    if escaped in ("", ".", ".."):  # folders
        escaped = _HASH_MARK if not escaped else _escape(".") + escaped[1:]
    if len(escaped) <= MAX_LENGTH:
        return escaped
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return escaped[: MAX_LENGTH - len(_HASH_MARK) - len(digest)] + _HASH_MARK + digest


def _escape(character: str) -> str:
    return f"_x{ord(character):x}_"
