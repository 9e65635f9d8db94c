"""Tables of parts are plain dicts in the module that owns the kind; this is the one way to read them."""

from collections.abc import Mapping
from typing import TypeVar

from causal_tune.errors import UnknownName

__all__ = ["look_up"]

T = TypeVar("T")


def look_up(kind: str, table: Mapping[str, T], name: str) -> T:
    """The entry called `name`, or an error that lists the names there are.

    >>> look_up("head", {"linear": 1}, "linear")
    1
    >>> look_up("head", {"linear": 1, "causal": 2}, "liner")
    Traceback (most recent call last):
    causal_tune.errors.UnknownName: No head is called 'liner'. There are: causal, linear.
    """
    if name not in table:
        raise UnknownName(f"No {kind} is called {name!r}. There are: {', '.join(sorted(table))}.")
    return table[name]
