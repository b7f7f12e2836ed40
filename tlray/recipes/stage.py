"""One stage of a recipe: the command it stands for, with its settings and where its input comes from."""

from __future__ import annotations

import difflib
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tlray.core import config
from tlray.core.errors import UserError
from tlray.core.schema import coerced
from tlray.core.settings import option, settings

IMAGES = "IMAGES"
"""Stands in a recipe for the images that are given when it is run."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Input:
    """Something a command is given besides its settings; the name is that of the job's parameter."""

    name: str
    makers: tuple[str, ...] = ()
    """The commands that make it. If there are none it is the images, and a recipe cannot say otherwise."""
    default: str | None = None
    optional: bool = False
    """An option on the command line, not an argument."""


@dataclass(frozen=True)
class Command:
    """A command that a recipe can have as a stage; the job is the function of that name in its module."""

    module: str
    config: type[Any]
    inputs: tuple[Input, ...]
    callbacks: tuple[str, ...]
    """How the job tells of its progress: the names of its parameters."""
    split: Callable[[Any], str | None]
    """The split that its input must have."""
    splits_of: tuple[str, ...] = ()
    """The inputs from which it takes splits that an earlier stage assigned."""
    suffix: str = ""
    """Of its output."""
    resumes: bool = True
    """Whether the job may be run again over its finished output."""

    @property
    def kinds(self) -> dict[str, Any]:
        """The keys that a stage may have, each with the type of its value."""
        inputs = {given.name: str for given in self.inputs if given.makers}
        return {**inputs, **{key(name): setting.kind for name, setting in settings(self.config).items()}}


def _validation(settings: config.TrainConfig) -> str | None:
    if settings.validation is not None:
        return settings.validation if settings.validation_fraction is None else None
    watched = settings.early_stopping is not None or settings.keeps_best
    return "validation" if watched and settings.monitor.startswith("val_") else None


_MODEL = ("fit", "finetune")
COMMANDS = {
    "extract": Command(
        module="tlray.features.extract",
        config=config.ExtractConfig,
        inputs=(Input("images", default=IMAGES),),
        callbacks=("progress",),
        split=lambda settings: None,
    ),
    "fit": Command(
        module="tlray.training.fit",
        config=config.FitConfig,
        inputs=(Input("features", ("extract",)),),
        callbacks=("report",),
        split=_validation,
        splits_of=("features",),
    ),
    "finetune": Command(
        module="tlray.training.finetune",
        config=config.FinetuneConfig,
        inputs=(Input("images", ("extract",), IMAGES), Input("model", _MODEL, optional=True)),
        callbacks=("progress", "report"),
        split=_validation,
        splits_of=("images", "model"),
    ),
    "evaluate": Command(
        module="tlray.evaluation.evaluate",
        config=config.EvaluateConfig,
        inputs=(Input("model", _MODEL), Input("data", ("extract",), IMAGES)),
        callbacks=("progress",),
        split=lambda settings: settings.split,
        splits_of=("data", "model"),
    ),
    "predict": Command(
        module="tlray.evaluation.predict",
        config=config.PredictConfig,
        inputs=(Input("model", _MODEL), Input("images", default=IMAGES)),
        callbacks=("progress",),
        split=lambda settings: settings.split,
        splits_of=("model",),
        suffix=".parquet",
        resumes=False,
    ),
}


@dataclass(frozen=True)
class Stage:
    """One stage, checked."""

    name: str
    command: str
    config: Any
    inputs: Mapping[str, str]
    """By the name of the input: an earlier stage, or IMAGES."""
    given: tuple[str, ...]
    """The fields of `config` that the recipe sets."""

    def output(self, out: str) -> str:
        """The folder or file it makes below a folder."""
        return posixpath.join(out, self.name) + COMMANDS[self.command].suffix

    def places(self, images: str, out: str) -> dict[str, str]:
        """Where its inputs lie."""
        return {name: images if of == IMAGES else posixpath.join(out, of) for name, of in self.inputs.items()}

    def line(self, images: str = IMAGES, out: str = "DIR") -> str:
        """The command line that does the same."""
        places = self.places(images, out)
        words = ["tlray", self.command]
        words += [places[i.name] for i in COMMANDS[self.command].inputs if not i.optional]
        for given in COMMANDS[self.command].inputs:
            if given.optional and given.name in places:
                words += [option(given.name), places[given.name]]
        words += ["--out", self.output(out)]
        only_here, known = "", settings(type(self.config))
        for name in self.given:
            value = getattr(self.config, name)
            if known[name].is_option:
                words += [option(name)] * (value is not False) + [str(value)] * (not isinstance(value, bool))
            elif value != getattr(type(self.config), name):
                only_here += f"  # and {key(name)} = {value}, which is no option"
        return shlex.join(words) + only_here


def build(where: str, name: str, table: Mapping[str, Any], earlier: Mapping[str, str]) -> Stage:
    """Make a stage of its table in a recipe.

    Args:
        where: for messages.
        name: of the stage.
        table: its keys and values, with a command that exists.
        earlier: the names of the stages before it, and their commands.

    Raises:
        UserError: an unknown key, a value of the wrong type or range, or an input that no stage makes.
    """
    command = COMMANDS[table["command"]]
    kinds = command.kinds
    values = {}
    for given, value in table.items():
        if given != "command":
            if given not in kinds:
                raise unknown_key(f"{where} ({table['command']})", given, kinds)
            values[given] = _coerce(f"{where}: {given}", value, kinds[given])
    inputs = {}
    for needed in command.inputs:
        source = values.pop(needed.name, needed.default)
        if source is not None and (source != needed.default):
            _check_source(where, needed, source, earlier)
        elif source is None and not needed.optional:
            raise UserError(
                f"{where}: {needed.name} is missing: expected {_expected(needed, earlier)};\n"
                f'write e.g. {needed.name} = "{needed.makers[0]}"'
            )
        if source is not None:
            inputs[needed.name] = source
    field_names = {key(field.name): field.name for field in fields(command.config)}
    settings = {field_names[given]: value for given, value in values.items()}
    try:
        built = command.config(**settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Stage(name, table["command"], built, inputs, tuple(settings))


def check_name(where: str, name: str) -> None:
    """Raise UserError if a stage cannot be called so, because its output will be."""
    if not _NAME.fullmatch(name) or name == IMAGES:
        raise UserError(
            f"{where}: a stage cannot be called {name!r}: expected letters, digits, - and _, "
            f"and not {IMAGES}; its output will have that name"
        )


def key(field: str) -> str:
    """How a setting is written in a recipe: as on the command line, without the dashes in front."""
    return option(field).removeprefix("--")


def unknown_key(where: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a key that is not known: the nearest, and all that are allowed."""
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(f"{where}: unknown key {given!r}{hint}\nallowed: {', '.join(names)}")


def _check_source(where: str, needed: Input, source: str, earlier: Mapping[str, str]) -> None:
    if source not in earlier:
        fault = "is made by no earlier stage"
    elif earlier[source] not in needed.makers:
        fault = f"is made by {earlier[source]}"
    else:
        return
    raise UserError(f'{where}: {needed.name} = "{source}" {fault}: expected {_expected(needed, earlier)}')


def _expected(needed: Input, earlier: Mapping[str, str]) -> str:
    known = [name for name, command in earlier.items() if command in needed.makers]
    known += [needed.default] if needed.default else []
    what = f"an earlier stage that is {' or '.join(needed.makers)}"
    return f"{what} ({', '.join(known) or 'there is none'})"


def _coerce(where: str, value: Any, kind: Any) -> Any:
    """The value as a setting of that type holds it."""
    try:
        return coerced(value, kind)
    except ValueError as error:
        raise UserError(f"{where} = {value!r}: expected {error}") from error
