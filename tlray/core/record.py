"""Frozen dataclasses that are written and read as JSON: results of jobs, manifests and what they hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self, get_args, get_type_hints

from tlray.core.schema import described, fits


def plain(value: Any) -> Any:
    """The value in JSON's own types; None for a number that is not finite, text for what JSON lacks."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def dump(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON text."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object whose keys are the fields of the class."""

    def to_json(self) -> dict[str, Any]:
        """The fields in JSON's own types; null for a number that is not finite."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Other keys are ignored; a field with a default may be missing.

        Raises:
            ValueError: a key is missing, or its value is of another type.
        """
        hints = get_type_hints(cls)
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if missing := sorted(needed - values.keys()):
            raise ValueError(f"{missing[0]} is missing")
        given = [field.name for field in fields(cls) if field.name in values]
        return cls(**{name: _read(name, values[name], hints[name]) for name in given})


def _read(name: str, value: Any, kind: Any) -> Any:
    """A value of a field, which may be a record or a list of records, or None instead."""
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, Record):
            if isinstance(value, Mapping):
                return part.from_json(value)
            if isinstance(value, list):
                return [_read(name, entry, part) for entry in value]
    if not fits(value, kind):
        raise ValueError(f"{name} is not {described(kind)}")
    return value
