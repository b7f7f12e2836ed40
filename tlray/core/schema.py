"""Values checked against type annotations: settings, whoever gives them, and manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "nothing",
    list: "a list",
    Sequence: "a list",
    dict: "a table",
    Mapping: "a table",
}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type.

    A whole number is a number too, but true and false are neither. NumPy's numbers count as Python's.

    Args:
        value: any value.
        kind: a class, Any, a Literal, a union, or a list, Sequence, dict or Mapping of such types.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return fits(value, parts[0])
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is Any:
        return True
    if origin in (int, float):
        return isinstance(value, Integral if origin is int else Real) and not isinstance(value, bool)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(entry, *parts) for entry in value if parts)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            fits(name, parts[0]) and fits(entry, parts[1]) for name, entry in value.items() if parts
        )
    return isinstance(value, origin)


def coerced(value: Any, kind: Any) -> Any:
    """A value as an annotated type has it; a number becomes text where text is wanted, e.g. 0.2 for a split.

    Raises:
        ValueError: it is of another type; the message says what was expected.
    """
    types = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for number in (int, float, str):
        if number in types and fits(value, float if number is str else number):
            return number(value)
    if not fits(value, kind):
        raise ValueError(described(kind))
    return value


def described(kind: Any) -> str:
    """What a value of an annotated type is, in words, e.g. "a whole number" or "best or last"."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return described(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in parts if part is not NoneType)
    if origin is Literal:
        *others, last = map(str, parts)
        return f"{', '.join(others)} or {last}" if others else last
    return _WORDS.get(origin) or f"a {origin.__name__}"
