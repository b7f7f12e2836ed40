"""How a job's settings are declared and checked. The settings themselves are in `tlray.core.config`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar, get_type_hints

from tlray.core.errors import UserError, unknown
from tlray.core.schema import coerced, shown

HEADINGS = ("Images and labels", "Network", "Training", "Output", "Cluster")
"""The headings under which `--help` shows the settings, in their order."""
IMAGES, NETWORK, TRAINING, OUTPUT, CLUSTER = HEADINGS


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting accepts."""

    contain: Callable[[float], bool]
    expected: str


POSITIVE = Bounds(lambda value: 0 < value < math.inf, "more than 0")
COUNT = Bounds(lambda value: 0 < value < 2**31, "more than 0 and less than 2147483648")
SIDE = Bounds(lambda value: 0 < value <= 2**14, "more than 0 and at most 16384")
FRACTION = Bounds(lambda value: 0 <= value <= 1, "a fraction from 0 to 1")
SHARE = Bounds(lambda value: 0 < value <= 1, "more than 0 and at most 1")
SECONDS = Bounds(lambda value: 0 < value <= 86_400, "more than 0 and at most 86400, a day")
SEED = Bounds(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")


class Setting(NamedTuple):
    """What a config class declares about one of its settings."""

    heading: str
    help: str
    bounds: Bounds | None
    is_option: bool
    """Whether the command line has it; recipes and Python callers have all settings."""
    kind: Any = None
    """The type annotation of the field; `settings` fills it in."""


def setting(
    heading: str, help: str, default: Any = None, bounds: Bounds | None = None, *, is_option: bool = True
) -> Any:
    """A field of a config class, with its default; the other arguments are those of `Setting`."""
    return field(default=default, metadata={"setting": Setting(heading, help, bounds, is_option)})


def settings(config: type[Any]) -> dict[str, Setting]:
    """The settings of a config class by the names of its fields."""
    kinds = get_type_hints(config)
    known = {
        field.name: field.metadata["setting"]._replace(kind=kinds[field.name]) for field in fields(config)
    }
    for name, default in getattr(config, "DEFAULTS", {}).items():
        help = known[name].help.partition(" Default: ")[0]
        known[name] = known[name]._replace(help=f"{help} Default: {default}.")
    return known


def option(field: str) -> str:
    """The command-line option of a setting, e.g. "--batch-size" for "batch_size"."""
    return f"--{field.rstrip('_').replace('_', '-')}"


def check(name: str, value: float, bounds: Bounds) -> None:
    """Raise UserError if the value of a setting is out of its bounds."""
    if not bounds.contain(value):
        raise UserError(f"{option(name)} {shown(value)}: expected {bounds.expected}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A set of settings, which are checked when an object is made.

    Raises:
        UserError: a value has the wrong type or is out of its bounds.
    """

    DEFAULTS: ClassVar[Mapping[str, str]] = {}
    """The defaults, in words, that `--help` gives instead of those of the base class, by setting."""

    def __post_init__(self) -> None:
        for name, setting in settings(type(self)).items():
            try:
                value = coerced(getattr(self, name), setting.kind)
            except ValueError as error:
                raise UserError(f"{option(name)} {shown(getattr(self, name))}: expected {error}") from error
            object.__setattr__(self, name, value)
            if setting.bounds is not None and value is not None:
                check(name, value, setting.bounds)


C = TypeVar("C", bound=Config)


def configured(kind: type[C], config: C | None, given: Mapping[str, Any]) -> C:
    """Combine a config object and keywords, either of which a Python caller may give.

    Args:
        kind: the config class of the job.
        config: the settings to start from; None for the defaults.
        given: settings by name, which replace those of `config`.

    Raises:
        UserError: a setting does not exist (the message names the nearest), or a value is wrong.
    """
    if not isinstance(config, kind | None):
        raise UserError(f"config is {config!r}: expected a {kind.__name__}")
    known = settings(kind)
    for name in given:
        if name not in known:
            raise unknown("setting", name, known)
    return kind(**given) if config is None else replace(config, **given)
