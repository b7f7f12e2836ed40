"""Recipes: data files that name the stages of a job. They are read, checked as a whole, and run."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib import import_module, resources
from typing import Any

from tlray.core.config import FinetuneConfig, TrainConfig
from tlray.core.errors import UserError, unknown
from tlray.core.record import Record
from tlray.core.schema import described
from tlray.core.storage import StrPath
from tlray.recipes.stage import COMMANDS, Stage, build, check_name, unknown_key

_HEADER = ("title", "reproduces", "source", "published", "command", "differs")
_REQUIRED = ("title", "command")
_SUFFIX = ".toml"

Report = Callable[[Stage, dict[str, float]], None]
Shown = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked."""

    name: str
    """As the user gave it: of one that comes with tlray, or a path."""
    header: Mapping[str, str]
    stages: tuple[Stage, ...]
    text: str
    """The file as it is, before any --set."""

    def to_json(self) -> dict[str, Any]:
        stages = [{"stage": s.name, "command": s.command, "line": s.line()} for s in self.stages]
        return {"name": self.name, **self.header, "stages": stages}


@dataclass(frozen=True, kw_only=True)
class StageResult(Record):
    """What a stage of a recipe has made."""

    stage: str
    """Its name."""
    command: str
    out: str
    """The folder or file that it wrote."""
    seconds: float
    """That it took in this run."""
    result: Record | None
    """What the command returned; None for predictions that were there already."""


@dataclass(frozen=True, kw_only=True)
class RecipeResult(Record):
    """What a recipe has made."""

    recipe: str
    out: str
    seconds: float
    """That this run took."""
    stages: list[StageResult]


def names() -> list[str]:
    """The recipes that come with tlray."""
    files = (file.name for file in _folder().iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))


def read(recipe: str, sets: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check every stage of it.

    Args:
        recipe: the name of one that comes with tlray, or the path of a file.
        sets: changes, each `KEY=VALUE` or `STAGE.KEY=VALUE`; see `_change`.

    Raises:
        UserError: there is none, it is no TOML, or it asks for something impossible.
    """
    text = _text(recipe)
    where = f"recipe {recipe}"
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is no TOML: {error}") from error
    stages = table.pop("stages", {})
    header = _header(where, table)
    tables = _tables(where, stages)
    for change in sets:
        _change(change, tables)
    built: dict[str, Stage] = {}
    for name, keys in tables.items():
        earlier = {stage.name: stage.command for stage in built.values()}
        built[name] = build(f"{where}, stage {name}", name, keys, earlier)
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
    progress: Shown = lambda stage: nullcontext(lambda done, total: None),
) -> RecipeResult:
    """Run all stages of a recipe, one after the other; run again, it goes on where it was.

    Args:
        recipe: as in `read`.
        images: a folder, URI or table; see `tlray.images.listing.Images`.
        out: a folder or URI; every stage writes to a folder or file of its name in it.
        sets: as in `read`.
        address: of a running Ray; without it a local one is started and stopped.
        say: called with the command line of every stage before it is run.
        report: called with the metrics of each epoch of a stage that trains.
        progress: called with the name of a stage that goes through images; a context manager.

    Raises:
        UserError: the job cannot be done.
        JobError: a stage failed; run it again to go on.
    """
    started = time.monotonic()
    recipe, images, out = (os.fspath(path) for path in (recipe, images, out))
    stages = read(recipe, sets).stages
    # Imported only now, so that a mistake in the recipe is answered at once.
    from tlray.cluster import session
    from tlray.recipes import preflight

    preflight.check(stages, images, out)
    results = []
    with session.connect(address, cpus=_cpus(stages)):
        for number, stage in enumerate(stages, start=1):
            say(f"stage {number} of {len(stages)}: {stage.line(images, out)}")
            began = time.monotonic()
            result = _run(stage, images, out, address, report, progress)
            results.append(
                StageResult(
                    stage=stage.name,
                    command=stage.command,
                    out=stage.output(out),
                    seconds=round(time.monotonic() - began, 3),
                    result=result,
                )
            )
    seconds = round(time.monotonic() - started, 3)
    return RecipeResult(recipe=recipe, out=out, seconds=seconds, stages=results)


def _run(
    stage: Stage, images: str, out: str, address: str | None, report: Report, progress: Shown
) -> Record | None:
    """Run one stage; None if its output is there already."""
    from tlray.recipes import preflight

    command, output = COMMANDS[stage.command], stage.output(out)
    if not command.resumes and preflight.is_written(output):
        return None
    job = getattr(import_module(command.module), stage.command)
    with ExitStack() as shown:

        def epoch(metrics: dict[str, float]) -> None:
            shown.close()  # What was gone through before the training is done.
            report(stage, metrics)

        callbacks: dict[str, Any] = {"report": epoch}
        if "progress" in command.callbacks:
            callbacks["progress"] = shown.enter_context(progress(stage.name))
        result: Record = job(
            **stage.places(images, out),
            out=output,
            config=stage.config,
            address=address,
            **{name: callbacks[name] for name in command.callbacks},
        )
    return result


def _cpus(stages: Iterable[Stage]) -> int:
    """What a local Ray must be able to run at once: the most that any stage needs."""
    from tlray.training import checks

    needed = [2]
    for settings in (stage.config for stage in stages):
        if isinstance(settings, TrainConfig):
            streams = isinstance(settings, FinetuneConfig) and settings.streams
            needed.append(checks.cpus(settings, streams))
    return max(needed)


def _folder() -> Any:
    return resources.files("tlray") / "recipes"


def _text(recipe: str) -> str:
    if recipe in names():
        return str((_folder() / f"{recipe}{_SUFFIX}").read_text("utf-8"))
    if not os.path.exists(recipe):
        if recipe.endswith(_SUFFIX) or "/" in recipe:
            raise UserError(f"the recipe {recipe!r} is not there: expected a {_SUFFIX} file, or a name")
        raise unknown("recipe", recipe, names())
    try:
        with open(recipe, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the recipe {recipe!r} cannot be read: {error}; expected a {_SUFFIX} file"
        ) from error


def _header(where: str, table: Mapping[str, Any]) -> dict[str, str]:
    for given, value in table.items():
        if given not in _HEADER:
            raise unknown_key(where, given, [*_HEADER, "stages"])
        if not isinstance(value, str):
            raise UserError(f"{where}: {given} = {value!r}: expected text")
    for name in _REQUIRED:
        if name not in table:
            raise UserError(f'{where}: {name} is missing: add {name} = "..." above the stages')
    return {name: table[name] for name in _HEADER if name in table}


def _tables(where: str, stages: Any) -> dict[str, dict[str, Any]]:
    """The stages as they stand there, once each is a table with a name and a command."""
    if not isinstance(stages, dict) or not stages:
        raise UserError(f'{where} has no stages: add e.g. [stages.features] and below it command = "extract"')
    for name, table in stages.items():
        check_name(where, name)
        if not isinstance(table, dict):
            raise UserError(f"{where}: stages.{name} = {table!r}: expected a table [stages.{name}]")
        known = ", ".join(COMMANDS)
        if str(table.get("command")) not in COMMANDS:
            fault = f"command = {table['command']!r}" if "command" in table else "command is missing"
            raise UserError(f"{where}, stage {name}: {fault}: expected one of {known}")
    return stages


def _change(change: str, tables: Mapping[str, dict[str, Any]]) -> None:
    """Change the stages as one --set says.

    KEY without a stage means the stages that say KEY, or, if there is none, all that could: so that
    what only one stage of a kind says stays its own. Without a value KEY is taken away.
    """
    target, equals, text = change.partition("=")
    stage, dot, given = target.rpartition(".")
    where = f"--set {change}"
    if not equals or not given:
        raise UserError(f"{where}: expected KEY=VALUE or STAGE.KEY=VALUE")
    if dot and stage not in tables:
        raise UserError(f"{where}: there is no stage {stage!r}: expected one of {', '.join(tables)}")
    kinds = {name: COMMANDS[table["command"]].kinds for name, table in tables.items()}
    able = [name for name in ([stage] if dot else tables) if given in kinds[name]]
    if not able:
        known = [name for keys in ([stage] if dot else tables) for name in kinds[keys]]
        raise unknown_key(where, given, dict.fromkeys(known))
    chosen = [name for name in able if given in tables[name]] or able
    if len({described(kinds[name][given]) for name in chosen}) > 1:
        ways = " or ".join(f"--set {name}.{given}={text}" for name in chosen)
        raise UserError(f"{where} means different things to the stages: name one, {ways}")
    for name in chosen:
        if text:
            tables[name][given] = _value(text)
        else:
            tables[name].pop(given, None)


def _value(text: str) -> Any:
    """A value as TOML has it, or else the text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
