"""Turns config classes into options, results into output, and errors into an exit status."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TextIO, get_args, get_type_hints

import typer

from tlray.cli.arguments import COMPLETIONS, METAVARS, option
from tlray.cli.help import Command, Group
from tlray.cli.progress import say
from tlray.cluster import session
from tlray.core.errors import TlrayError
from tlray.core.record import Record, dump
from tlray.core.settings import CLUSTER, FRACTION, OUTPUT, SHARE, Setting, setting, settings
from tlray.core.settings import option as option_name
from tlray.core.text import printable, without_credentials


@dataclass(frozen=True, kw_only=True)
class _Output:
    """The options of every command."""

    json: bool = setting(
        OUTPUT, "Print only one JSON object on stdout; everything else goes to stderr.", False
    )
    debug: bool = setting(OUTPUT, "Show tracebacks, and the messages of Ray and TensorFlow.", False)


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """The options of every command that runs on Ray."""

    address: str | None = setting(
        CLUSTER,
        "Address of a running Ray cluster. Default: RAY_ADDRESS, which Ray sets for a submitted job; "
        "else a command that needs Ray starts a local one, and stops it at the end.",
        os.environ.get("RAY_ADDRESS"),
    )


@dataclass(frozen=True)
class Result:
    """What a command prints, and its exit status."""

    values: Record | Mapping[str, Any]
    """The object that --json prints."""
    text: str
    """The text that is printed without --json."""
    now: str = ""
    """A command that the user may want to run next."""
    status: int = 0
    """The exit status."""


def command(function: Callable[..., Result]) -> Callable[..., None]:
    """Make a Typer command of a function that takes config classes and returns a `Result`.

    A parameter whose type is a dataclass becomes one option for each field of the class; --json and --debug
    are added. Errors become a message and an exit status here and nowhere else.
    """
    hints = get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters
    configs = {name: hints[name] for name in own if is_dataclass(hints[name])}
    plain = [own[name].replace(annotation=hints[name]) for name in own if name not in configs]
    expanded = [option for config in (*configs.values(), _Output) for option in _options(config)]
    # Python wants the required ones first.
    parameters = sorted([*plain, *expanded], key=lambda parameter: parameter.default is not parameter.empty)

    @functools.wraps(function)
    def run(**given: Any) -> None:
        with _reported(as_json=given["json"], debug=given["debug"]):
            arguments = {parameter.name: given[parameter.name] for parameter in plain}
            for name, config in configs.items():
                names = [field.name for field in fields(config) if field.name in given]
                arguments[name] = config(**{name: given[name] for name in names})
            with redirect_stdout(sys.stderr):  # Ray reports dead workers on stdout.
                result = function(**arguments)
            now = f"\nnow: {result.now}" if result.now else ""
            text = dump(result.values) if given["json"] else f"{result.text}{now}"
            print(printable(text, as_json=given["json"]))
            if result.status:
                raise typer.Exit(result.status)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def group(name: str, help: str, *functions: Callable[..., Result]) -> typer.Typer:
    """Make a command with commands of its own; the name of each function is that of its command after a _."""
    app = typer.Typer(name=name, help=help, cls=Group, no_args_is_help=True)
    for function in functions:
        app.command(function.__name__.removeprefix("_"), cls=Command)(command(function))
    return app


@contextmanager
def _reported(*, as_json: bool, debug: bool) -> Iterator[None]:
    """End the command with a message and an exit status if the block raises an error."""
    logging.getLogger("tlray").setLevel(logging.DEBUG if debug else logging.WARNING)
    stdout = sys.stdout if as_json else None
    on_loss = session.on_loss
    session.on_loss = functools.partial(_end, stdout)
    try:
        yield
    except typer.Exit:
        raise
    except BaseException as error:
        status, message = _explanation(error)
        if debug:
            say("".join(traceback.format_exception(error)), end="")
        _fail(status, message, stdout)
        raise typer.Exit(status) from error
    finally:
        session.on_loss = on_loss


def _end(stdout: TextIO | None, error: TlrayError) -> None:
    """End this process at once with an error, e.g. because calls of a lost Ray do not return."""
    if sys.stderr.isatty():
        sys.stderr = sys.__stderr__ or sys.stderr  # A progress bar redirects it, and hides the cursor.
        sys.stderr.write("\x1b[?25h\n")
    _fail(error.exit_status, str(error), stdout)
    os._exit(error.exit_status)


def _fail(status: int, message: str, stdout: TextIO | None) -> None:
    """Print an error, also as JSON on `stdout` if it is given."""
    say(f"tlray: {message}")
    if stdout is not None:
        values = {"error": without_credentials(message), "exit_status": status}
        print(json.dumps(values), file=stdout, flush=True)


def _explanation(error: BaseException) -> tuple[int, str]:
    """The exit status and the message for an error."""
    if isinstance(error, TlrayError):
        return error.exit_status, str(error)
    if isinstance(error, KeyboardInterrupt):  # Shells use the same status.
        return 130, str(error) or "stopped; run the same command again to continue"
    if isinstance(error, OSError):
        return 1, f"{error.strerror or error}: {error.filename or 'input or output failed'}"
    reason = " ".join(str(error).split())[:500]
    return 1, f"unexpected {type(error).__name__}: {reason} (--debug shows more)"


def _options(config: type[Any]) -> list[inspect.Parameter]:
    """The options of a config class, each as a parameter of a function."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(config, name),
            annotation=Annotated[setting.kind, _declaration(name, setting)],
        )
        for name, setting in settings(config).items()
        if setting.is_option
    ]


def _declaration(name: str, setting: Setting) -> Any:
    return option(
        f"{option_name(name)} {_metavar(name, setting)}",
        setting.heading,
        setting.help,
        show_default="Default: " not in setting.help,
        autocompletion=COMPLETIONS.get(name),
    )


def _metavar(name: str, setting: Setting) -> str:
    """What `--help` calls the value of a setting; nothing for a flag, and for choices, which Typer lists."""
    kinds = {setting.kind, *get_args(setting.kind)}
    if str in kinds:
        return METAVARS.get(name, "NAME")
    if float in kinds:
        return "FRACTION" if setting.bounds in (FRACTION, SHARE) else "NUMBER"
    return "N" if int in kinds else ""
