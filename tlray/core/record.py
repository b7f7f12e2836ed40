"""Frozen dataclasses that are written to JSON and read from it, such as job results and manifests."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self, get_args, get_type_hints

from tlray.core.schema import described, fits


def plain(value: Any) -> Any:
    """Convert a value to JSON's types; a number that is not finite becomes None, any other object text."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays.
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def dump(value: Any, *, indent: int | None = None) -> str:
    """Convert a value to JSON text."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object whose keys are the fields of the class."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name in JSON's own types; a number that is not finite is None."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make a record from what `to_json` returned; unknown keys are ignored.

        Raises:
            ValueError: a field without a default is missing, or a value has the wrong type.
        """
        kinds = get_type_hints(cls)
        required = {field.name for field in fields(cls) if field.default is field.default_factory is MISSING}
        if missing := sorted(required - values.keys()):
            raise ValueError(f"{missing[0]} is missing")
        return cls(**{name: _read(name, values[name], kinds[name]) for name in kinds if name in values})


def _read(name: str, value: Any, kind: Any) -> Any:
    """Convert a JSON value to the type of a field, in which records and lists of records may occur."""
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, Record):
            if isinstance(value, Mapping):
                return part.from_json(value)
            if isinstance(value, list):
                return [_read(name, entry, part) for entry in value]
    if not fits(value, kind):
        raise ValueError(f"{name} is not {described(kind)}")
    return value
