"""How config classes become options, results become output, and errors become an exit status."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer

from tlray.cli.arguments import COMPLETIONS, METAVARS, option
from tlray.cli.help import Command, Group
from tlray.core.errors import TlrayError
from tlray.core.record import Record, dump
from tlray.core.settings import CLUSTER, FRACTION, OUTPUT, SHARE, Setting, setting, settings
from tlray.core.settings import option as option_name

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of a shell."""


@dataclass(frozen=True, kw_only=True)
class _Output:
    """What every command takes."""

    json: bool = setting(OUTPUT, "Print one JSON object on stdout, and nothing else there.", False)
    debug: bool = setting(OUTPUT, "Show tracebacks, and the messages of Ray and TensorFlow.", False)


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """What every command that runs on Ray takes."""

    address: str | None = setting(
        CLUSTER,
        "Address of a running Ray cluster. Default: RAY_ADDRESS, which Ray sets for a submitted job; "
        "else a local Ray is started, and stopped at the end.",
        os.environ.get("RAY_ADDRESS"),
    )


@dataclass(frozen=True)
class Result:
    """What a command found."""

    values: Record | Mapping[str, Any]
    """For --json."""
    text: str
    """For people."""
    now: str = ""
    """A command that people may want to type next."""
    status: int = 0
    """Exit status of a command that has done what it was asked for."""


def command(function: Callable[..., Result]) -> Callable[..., None]:
    """Make a typer command of a function that takes config classes and returns a result.

    Each parameter whose type is a dataclass becomes one option for each of its fields; --json and
    --debug are added. Errors are turned into a message and an exit status here and nowhere else.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {
        name: hint for name, hint in hints.items() if is_dataclass(hint) and name != "return"
    }
    signature = inspect.signature(function)
    plain = [
        parameter.replace(annotation=hints[name])
        for name, parameter in signature.parameters.items()
        if name not in groups
    ]
    # Required ones first, as Python wants it.
    expanded = [option for group in [*groups.values(), _Output] for option in _options(group)]
    parameters = sorted([*plain, *expanded], key=lambda parameter: parameter.default is not parameter.empty)

    @functools.wraps(function)
    def run(**given: Any) -> None:
        def build(group: Any) -> Any:
            return group(**{field.name: given[field.name] for field in fields(group) if field.name in given})

        with _reported(as_json=given["json"], debug=given["debug"]):
            arguments = {name: given[name] for name in signature.parameters if name not in groups}
            configs = {name: build(group) for name, group in groups.items()}
            with redirect_stdout(sys.stderr):  # Ray tells there that a worker has died.
                result = function(**arguments, **configs)
            now = f"\nnow: {result.now}" if result.now else ""
            print(dump(result.values) if given["json"] else f"{result.text}{now}")
            if result.status:
                raise typer.Exit(result.status)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def group(name: str, help: str, *functions: Callable[..., Result]) -> typer.Typer:
    """A command with commands of its own: the functions, whose names have a _ in front."""
    app = typer.Typer(name=name, help=help, cls=Group, no_args_is_help=True)
    for function in functions:
        app.command(function.__name__.removeprefix("_"), cls=Command)(command(function))
    return app


class _reported:  # noqa: N801 - used like a function
    """Ends the command with a message and a status when an error leaves the block."""

    def __init__(self, *, as_json: bool, debug: bool) -> None:
        self.as_json, self.debug = as_json, debug
        logging.getLogger("tlray").setLevel(logging.DEBUG if debug else logging.WARNING)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, typer.Exit):
            return
        if isinstance(error, TlrayError):
            status, message = error.exit_status, str(error)
        elif isinstance(error, KeyboardInterrupt):
            status = INTERRUPTED
            message = str(error) or "stopped; run the same command again to finish"
        elif isinstance(error, OSError):
            status, message = 1, f"{error.strerror or error}: {error.filename or 'input or output failed'}"
        else:
            reason = " ".join(str(error).split())[:500]
            status, message = 1, f"unexpected {type(error).__name__}: {reason} (--debug shows more)"
        if self.debug:
            traceback.print_exception(error)
        print(f"tlray: {message}", file=sys.stderr)
        if self.as_json:
            print(json.dumps({"error": message, "exit_status": status}))
        raise typer.Exit(status)


def _options(group: type[Any]) -> list[inspect.Parameter]:
    found, known = [], settings(group)
    for field in fields(group):
        setting = known[field.name]
        if not setting.is_option:
            continue
        declared = option(
            f"{option_name(field.name)} {_metavar(field.name, setting)}",
            setting.heading,
            setting.help,
            show_default="Default: " not in setting.help,
            autocompletion=COMPLETIONS.get(field.name),
        )
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=Annotated[setting.kind, declared],
            )
        )
    return found


def _metavar(name: str, setting: Setting) -> str:
    """What `--help` calls the value of a setting; nothing for a flag, and for choices, which typer lists."""
    kinds = {setting.kind, *get_args(setting.kind)}
    if str in kinds:
        return METAVARS.get(name, "NAME")
    if float in kinds:
        return "FRACTION" if setting.bounds in (FRACTION, SHARE) else "NUMBER"
    return "N" if int in kinds else ""
