"""Checks of values, such as settings and manifests, against type annotations."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
    Mapping: "a table",
}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has an annotated type.

    An int is also a float, but a bool is neither; NumPy's numbers count as Python's.

    Args:
        value: any value.
        kind: a class, Any, a Literal, a union, or a list, dict or Mapping of such types.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is Any:
        return True
    if origin in (int, float):
        return isinstance(value, Integral if origin is int else Real) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(fits(entry, *parts) for entry in value if parts)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            fits(name, parts[0]) and fits(entry, parts[1]) for name, entry in value.items() if parts
        )
    return isinstance(value, origin)


def coerced(value: Any, kind: Any) -> Any:
    """Convert a number to the annotated int, float or str, e.g. 0.2 to "0.2"; return other values unchanged.

    Raises:
        ValueError: the value has another type; the message says what was expected.
    """
    types = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for number in (int, float, str):
        if number in types and fits(value, float if number is str else number):
            try:
                return number(value)
            except (OverflowError, ValueError) as error:  # A float is less than 2**1024; text has limits too.
                raise ValueError(described(kind)) from error
    if not fits(value, kind):
        raise ValueError(described(kind))
    return value


def shown(value: Any) -> str:
    """A value as text for a message, at most 80 characters of it."""
    try:
        text = str(value) if isinstance(value, Integral | Real) else repr(value)
    except (ValueError, RecursionError):  # Python does not print integers of more than 4,300 digits.
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def described(kind: Any) -> str:
    """Name an annotated type in words, e.g. "a whole number" or "best or last"."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in parts if part is not NoneType)
    if origin is Literal:
        *others, last = map(str, parts)
        return f"{', '.join(others)} or {last}" if others else last
    return _WORDS.get(origin) or f"a {origin.__name__}"
