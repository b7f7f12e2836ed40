"""One stage of a recipe: a command, its settings and the sources of its input."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tlray.core import config
from tlray.core.errors import UserError, unknown
from tlray.core.schema import coerced, shown
from tlray.core.settings import option, settings
from tlray.core.storage import Folder

IMAGES = "IMAGES"
"""The word in a recipe for the images that the user gives to `tlray run`."""


@dataclass(frozen=True)
class Input:
    """An input of a command: images, features or a model."""

    name: str
    """The name of the parameter of the command's function."""
    makers: tuple[str, ...] = ()
    """The commands whose output can be this input. Without any, it is always the images."""
    default: str | None = None
    optional: bool = False
    """Whether the input is an option on the command line instead of an argument."""


@dataclass(frozen=True)
class Command:
    """A command that can be a stage of a recipe."""

    module: str
    """The module with the function that has the name of the command and runs it."""
    config: type[Any]
    inputs: tuple[Input, ...]
    callbacks: tuple[str, ...]
    """The parameters of the function that take callbacks: "progress", "announce", "report"."""
    split: Callable[[Any], str | None]
    """Returns the split that the input must have, for the settings of a stage."""
    splits_of: tuple[str, ...] = ()
    """The inputs whose splits may have been assigned by an earlier stage."""
    suffix: str = ""
    """The suffix of the output's name."""
    resumes: bool = True
    """Whether the command may run again when its output is complete."""

    @property
    def kinds(self) -> dict[str, Any]:
        """The keys that a stage may have, each with the type of its value."""
        inputs = {source.name: str for source in self.inputs if source.makers}
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
        callbacks=("progress", "announce"),
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
        callbacks=("progress", "announce", "report"),
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
    """One stage of a recipe, whose keys and values have been checked."""

    name: str
    command: str
    config: Any
    inputs: Mapping[str, str]
    """The source of each input by the name of the input: an earlier stage or IMAGES."""
    set_fields: tuple[str, ...]
    """The fields of `config` that the recipe sets."""

    def output(self, out: str) -> str:
        """The path of the folder or file that the stage writes inside the folder `out`."""
        return posixpath.join(out, self.name) + COMMANDS[self.command].suffix

    def is_complete(self, out: str) -> bool:
        """Whether the stage has written its output and must not run again."""
        output = self.output(out)
        if COMMANDS[self.command].resumes or not Folder.open(output).is_file():
            return False
        return not Folder.open(f"{output}.parts.json").exists()  # An interrupted job leaves this file.

    def settings(self, out: str) -> Any:
        """The settings for a run in the folder `out`: a path that the recipe sets is below it."""
        if (name := getattr(self.config, "annotate", None)) is None:
            return self.config
        return replace(self.config, annotate=posixpath.join(out, name))

    def places(self, images: str, out: str) -> dict[str, str]:
        """The paths of the inputs by the name of the input."""
        return {name: images if of == IMAGES else posixpath.join(out, of) for name, of in self.inputs.items()}

    def line(self, images: str = IMAGES, out: str = "DIR") -> str:
        """The `tlray` command line that does the same as the stage."""
        places = self.places(images, out)
        words = ["tlray", self.command]
        for source in COMMANDS[self.command].inputs:
            if source.name in places:
                words += [option(source.name)] * source.optional + [places[source.name]]
        words += ["--out", self.output(out)]
        recipe_only, known = "", settings(type(self.config))
        for name in self.set_fields:
            value = getattr(self.settings(out), name)
            if known[name].is_option:
                words += [option(name)] * (value is not False) + [str(value)] * (not isinstance(value, bool))
            elif value != getattr(type(self.config), name):
                recipe_only += f"  # and {key(name)} = {value}, which has no option"
        return shlex.join(words) + recipe_only


def build(where: str, name: str, table: Mapping[str, Any], earlier: Mapping[str, str]) -> Stage:
    """Make a stage from its table in a recipe; `earlier` has the commands of the earlier stages by name.

    Raises:
        UserError: a key is unknown, a value has the wrong type or range, or no earlier stage makes an input.
    """
    command = COMMANDS[table["command"]]
    kinds = command.kinds
    values = {}
    for setting, value in table.items():
        if setting == "command":
            continue
        if setting not in kinds:
            raise UserError(f"{where} ({table['command']}): {unknown('key', setting, kinds)}")
        try:
            values[setting] = coerced(value, kinds[setting])
        except ValueError as error:
            raise UserError(f"{where}: {setting} = {shown(value)}: expected {error}") from error
    inputs = {}
    for needed in command.inputs:
        source = values.pop(needed.name, needed.default)
        if source is None and needed.optional:
            if not values.get("head"):
                raise UserError(f'{where}: give {needed.name} = "STAGE" to start from, or a new head')
            continue
        if source is None or (source != needed.default and earlier.get(source) not in needed.makers):
            raise _wrong_source(where, needed, source, earlier)
        inputs[needed.name] = source
    field_names = {key(field.name): field.name for field in fields(command.config)}
    settings = {field_names[setting]: value for setting, value in values.items()}
    try:
        built = command.config(**settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Stage(name, table["command"], built, inputs, tuple(settings))


def key(field: str) -> str:
    """The key of a setting in a recipe: its option without the leading dashes."""
    return option(field).removeprefix("--")


def _wrong_source(where: str, needed: Input, source: str | None, earlier: Mapping[str, str]) -> UserError:
    """The error for an input that is missing or that no earlier stage makes; it lists the stages that do."""
    if source is None:
        fault = "is missing"
    elif source in earlier:
        fault = f'= "{source}" is the output of {earlier[source]}'
    else:
        fault = f'= "{source}" is not an earlier stage'
    stages = ", ".join(name for name, command in earlier.items() if command in needed.makers)
    expected = f"an earlier {' or '.join(needed.makers)} stage ({stages or 'this recipe has none'})"
    default = f" or {needed.default}" if needed.default else ""
    return UserError(f'{where}: {needed.name} {fault}: expected {needed.name} = "STAGE", {expected}{default}')
