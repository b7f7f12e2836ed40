"""Reads, checks and runs recipes: TOML files that describe a job as a series of commands, its stages."""

from __future__ import annotations

import os
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module, resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray.core.config import TrainConfig
from tlray.core.errors import UserError, unknown
from tlray.core.record import Record
from tlray.core.schema import described, shown
from tlray.core.storage import StrPath
from tlray.recipes.stage import COMMANDS, IMAGES, Stage, build

if TYPE_CHECKING:
    from tlray.images.account import Announce

_FOLDER = resources.files("tlray.recipes")
_HEADER = ("title", "reproduces", "source", "published", "command", "differs")
_SUFFIX = ".toml"

Report = Callable[[Stage, dict[str, float]], None]
ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Recipe:
    """A recipe whose stages have been checked."""

    name: str
    """The name or path that the user gave."""
    header: Mapping[str, str]
    stages: tuple[Stage, ...]
    text: str
    """The text of the file, without the changes by --set."""

    def to_json(self) -> dict[str, Any]:
        stages = [{"stage": s.name, "command": s.command, "line": s.line()} for s in self.stages]
        return {"name": self.name, **self.header, "stages": stages}


@dataclass(frozen=True, kw_only=True)
class StageResult(Record):
    """The result of one stage of a recipe."""

    stage: str
    """The name of the stage."""
    command: str
    out: str
    """The folder or file that the stage wrote."""
    seconds: float
    """Seconds that the stage took in this run."""
    result: Record | None
    """The result of the command; None for predictions that an earlier run wrote."""


@dataclass(frozen=True, kw_only=True)
class RecipeResult(Record):
    """The results of all stages of a recipe."""

    recipe: str
    out: str
    seconds: float
    """Seconds that this run took."""
    stages: list[StageResult]


def names() -> list[str]:
    """The names of the recipes that come with tlray, sorted."""
    files = (file.name for file in _FOLDER.iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))


def read(recipe: str, sets: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check every stage of it.

    Args:
        recipe: the name of a recipe that comes with tlray, or the path of a TOML file.
        sets: changes of settings, each `STAGE.KEY=VALUE` or `KEY=VALUE`. Without a stage, it changes the
            stages that set KEY in the recipe, or, if none does, all stages that can have it.

    Raises:
        UserError: the recipe does not exist, is not valid TOML, or has an invalid stage.
    """
    text = _text(recipe)
    where = f"recipe {recipe}"
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # Python limits the digits of a number, too.
        raise UserError(f"{where} is not valid TOML: {error}") from error
    tables = table.pop("stages", {})
    for key, value in table.items():
        if key not in _HEADER:
            raise UserError(f"{where}: {unknown('key', key, [*_HEADER, 'stages'])}")
        if not isinstance(value, str):
            raise UserError(f"{where}: {key} = {shown(value)}: expected text")
    for key in ("title", "command"):
        if key not in table:
            raise UserError(f'{where}: {key} is missing: add {key} = "..." above the stages')
    _check_tables(where, tables)
    for change in sets:
        _change(change, tables)
    built: dict[str, Stage] = {}
    for name, keys in tables.items():
        earlier = {stage.name: stage.command for stage in built.values()}
        built[name] = build(f"{where}, stage {name}", name, keys, earlier)
    header = {key: table[key] for key in _HEADER if key in table}
    return Recipe(recipe, header, tuple(built.values()), text)


def run(
    recipe: StrPath,
    images: StrPath,
    out: StrPath,
    sets: Iterable[str] = (),
    *,
    address: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    report: Report = lambda stage, metrics: None,
    announce: Announce | None = None,
    progress: ProgressBar = lambda stage: nullcontext(lambda done, total: None),
) -> RecipeResult:
    """Run all stages of a recipe in order. A second run continues an interrupted one.

    Args:
        recipe: the name of a recipe that comes with tlray, or the path of a TOML file.
        images: the folder, URI or table that holds the images; see `tlray.images.listing.Images`.
        out: the folder or URI for the results; each stage writes a folder or file named after it.
        sets: changes of settings, each `KEY=VALUE` or `STAGE.KEY=VALUE`.
        address: the address of a running Ray; None starts a local Ray and stops it at the end.
        say: called before each stage with a line that holds its number and its command line.
        report: called with the stage and the metrics of each epoch of training.
        announce: called with what was understood of the images; None turns its warnings into Python's.
        progress: called with the name of a stage that processes images. It returns a context manager,
            whose value is called with the numbers of finished and of all images.

    Raises:
        UserError: the recipe, its settings or the images cannot be used.
        JobError: a stage fails; run the recipe again to continue.
    """
    started = time.monotonic()
    recipe, images, out = (os.fspath(path) for path in (recipe, images, out))
    stages = read(recipe, sets).stages
    # These imports take time; after `read`, they do not delay the message about a mistake in the recipe.
    from tlray.cluster import session
    from tlray.images.account import warn
    from tlray.recipes import preflight
    from tlray.training import checks

    preflight.check(stages, images, out)
    trainings = [stage.config for stage in stages if isinstance(stage.config, TrainConfig)]
    # A local Ray must offer as many CPUs as any stage needs at once.
    cpus = max([2, *(checks.cpus(config, getattr(config, "streams", False)) for config in trainings)])
    results = []
    with session.connect(address, cpus=cpus):
        for number, stage in enumerate(stages, start=1):
            say(f"stage {number} of {len(stages)}: {stage.line(images, out)}")
            stage_started = time.monotonic()
            result = _run(stage, images, out, address, report, progress, announce or warn)
            results.append(
                StageResult(
                    stage=stage.name,
                    command=stage.command,
                    out=stage.output(out),
                    seconds=round(time.monotonic() - stage_started, 3),
                    result=result,
                )
            )
    seconds = round(time.monotonic() - started, 3)
    return RecipeResult(recipe=recipe, out=out, seconds=seconds, stages=results)


def _run(
    stage: Stage,
    images: str,
    out: str,
    address: str | None,
    report: Report,
    progress: ProgressBar,
    announce: Announce,
) -> Record | None:
    """Run one stage and return its result; None if its output is complete and it must not run again."""
    if stage.is_complete(out):
        return None
    command = COMMANDS[stage.command]
    job = getattr(import_module(command.module), stage.command)
    with ExitStack() as progress_bar:

        def report_epoch(metrics: dict[str, float]) -> None:
            progress_bar.close()  # All images are processed once the training reports an epoch.
            report(stage, metrics)

        callbacks: dict[str, Any] = {"report": report_epoch, "announce": announce}
        if "progress" in command.callbacks:
            callbacks["progress"] = progress_bar.enter_context(progress(stage.name))
        result: Record = job(
            **stage.places(images, out),
            out=stage.output(out),
            config=stage.settings(out),
            address=address,
            **{name: callbacks[name] for name in command.callbacks},
        )
    return result


def _text(recipe: str) -> str:
    if recipe in names():
        return _FOLDER.joinpath(f"{recipe}{_SUFFIX}").read_text("utf-8")
    if not os.path.exists(recipe):
        if recipe.endswith(_SUFFIX) or "/" in recipe:
            raise UserError(f"the recipe {recipe!r} does not exist: expected a {_SUFFIX} file or a name")
        raise unknown("recipe", recipe, names())
    try:
        return Path(recipe).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the recipe {recipe!r} cannot be read: {error}; expected a {_SUFFIX} file"
        ) from error


def _check_tables(where: str, stages: Any) -> None:
    """Raise UserError unless each stage is a table with a valid name and a known command."""
    if not isinstance(stages, dict) or not stages:
        raise UserError(f'{where} has no stages: add e.g. [stages.features] and below it command = "extract"')
    for name, table in stages.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == IMAGES:
            raise UserError(
                f"{where}: {name!r} is not a valid stage name: expected letters, digits, - and _, "
                f"but not {IMAGES}; the output gets this name"
            )
        if not isinstance(table, dict):
            raise UserError(f"{where}: stages.{name} = {shown(table)}: expected a table [stages.{name}]")
        if table.get("command") not in list(COMMANDS):
            fault = f"command = {shown(table['command'])}" if "command" in table else "command is missing"
            raise UserError(f"{where}, stage {name}: {fault}: expected one of {', '.join(COMMANDS)}")


def _change(change: str, tables: Mapping[str, dict[str, Any]]) -> None:
    """Apply one --set to the stages.

    KEY without a stage changes the stages that set KEY, so that a setting of one stage does not spread to
    others. If none sets it, all stages that can have KEY change. KEY= without a value removes KEY.
    """
    target, equals, text = change.partition("=")
    stage, dot, key = target.rpartition(".")
    where = f"--set {change}"
    if not equals or not key:
        raise UserError(f"{where}: expected KEY=VALUE or STAGE.KEY=VALUE")
    if dot and stage not in tables:
        raise UserError(f"{where}: the recipe has no stage {stage!r}: expected one of {', '.join(tables)}")
    kinds = {name: COMMANDS[tables[name]["command"]].kinds for name in ([stage] if dot else tables)}
    candidates = [name for name in kinds if key in kinds[name]]
    if not candidates:
        raise UserError(f"{where}: {unknown('key', key, set(chain(*kinds.values())))}")
    chosen = [name for name in candidates if key in tables[name]] or candidates
    if len({described(kinds[name][key]) for name in chosen}) > 1:
        ways = " or ".join(f"--set {name}.{key}={text}" for name in chosen)
        raise UserError(f"{where} means different things in different stages: write {ways}")
    for name in chosen:
        if text:
            tables[name][key] = _value(text)
        else:
            tables[name].pop(key, None)


def _value(text: str) -> Any:
    """Read a value as TOML; text that is not TOML stays text."""
    with suppress(ValueError, RecursionError):
        parsed = tomllib.loads(f"value = {text}")
        if len(parsed) == 1:
            return parsed["value"]
    return text
