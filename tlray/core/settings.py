"""How a job's settings are declared and checked. The settings themselves are in `tlray.core.config`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar, get_type_hints

from tlray.core.errors import UserError, unknown
from tlray.core.schema import coerced


@dataclass(frozen=True)
class Group:
    """The heading under which `--help` shows a setting."""

    title: str


IMAGES = Group("Images and labels")
NETWORK = Group("Network")
TRAINING = Group("Training")
OUTPUT = Group("Output")
CLUSTER = Group("Cluster")


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may be."""

    contain: Callable[[float], bool]
    expected: str


POSITIVE = Bounds(lambda value: 0 < value < math.inf, "more than 0")
FRACTION = Bounds(lambda value: 0 <= value <= 1, "a fraction from 0 to 1")
SHARE = Bounds(lambda value: 0 < value <= 1, "more than 0 and at most 1")
SEED = Bounds(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")


class Setting(NamedTuple):
    """What a config class says of one of its settings."""

    group: Group
    help: str
    bounds: Bounds | None
    is_option: bool
    """Whether it is on the command line; the others are for recipes and Python callers."""
    kind: Any = None
    """Its type."""


def setting(
    default: Any, group: Group, help: str, *, bounds: Bounds | None = None, is_option: bool = True
) -> Any:
    """A field of a config class, with what `--help` says of it."""
    return field(default=default, metadata={"setting": Setting(group, help, bounds, is_option)})


def settings(config: type[Any]) -> dict[str, Setting]:
    """The settings of a config class, by the names of its fields."""
    kinds = get_type_hints(config)
    return {
        field.name: field.metadata["setting"]._replace(kind=kinds[field.name]) for field in fields(config)
    }


def option(field: str) -> str:
    """How a setting is written on the command line."""
    return f"--{field.rstrip('_').replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings, checked.

    Raises:
        UserError: a value has the wrong type, or is out of its bounds.
    """

    def __post_init__(self) -> None:
        for name, setting in settings(type(self)).items():
            try:
                value = coerced(getattr(self, name), setting.kind)
            except ValueError as error:
                raise UserError(f"{option(name)} {getattr(self, name)!r}: expected {error}") from error
            object.__setattr__(self, name, value)
            if setting.bounds is not None and value is not None and not setting.bounds.contain(value):
                raise UserError(f"{option(name)} {value}: expected {setting.bounds.expected}")


C = TypeVar("C", bound=Config)


def configured(kind: type[C], config: C | None, given: Mapping[str, Any]) -> C:
    """The settings of a Python caller: a config object, keywords, or both.

    Args:
        kind: the config class of the job.
        config: the settings to start from; without it the defaults.
        given: settings by name; they replace those of `config`.

    Raises:
        UserError: there is no such setting (the message names the nearest), or a value is wrong.
    """
    if not isinstance(config, kind | None):
        raise UserError(f"config is {config!r}: expected a {kind.__name__}")
    known = settings(kind)
    for name in given:
        if name not in known:
            raise unknown("setting", name, known)
    return kind(**given) if config is None else replace(config, **given)
