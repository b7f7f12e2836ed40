"""`tlray submit`: a command that runs as a job on a cluster."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Annotated

import typer

from tlray.cli.arguments import Dashboard, option
from tlray.cli.options import Result, command
from tlray.cli.progress import say
from tlray.core import private
from tlray.core.errors import UserError
from tlray.core.settings import CLUSTER

_PATHS = {"IMAGES", "FEATURES", "MODEL", "IMAGES|FEATURES", "FEATURES|MODEL", "FOLDER", "FILE"}
"""What `--help` calls the arguments that are paths."""
_PERHAPS_PATHS = {"RECIPE", "NAME|PATH"}
"""What `--help` calls the arguments that are paths or names."""


def _commands(words: Sequence[str]) -> Iterator[Sequence[str]]:
    """The words of each tlray command in a command, or in a line for the shell."""
    if len(words) > 1 or not re.search(r"\s", words[0]):
        yield words[1:] if words[0] == "tlray" else words
        return
    lexer = shlex.shlex(words[0], posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        parts = [*lexer]
    except ValueError as error:
        raise UserError(f"the command cannot be read as a line for a shell: {error}") from error
    for is_border, group in groupby(parts, lambda part: set(part) <= set("();<>|&\n")):
        part = [*group]
        if "cd" in part:
            return  # The paths after it are relative to a folder of the cluster.
        if not is_border and "tlray" in part:
            yield part[part.index("tlray") + 1 :]


def _check_paths(context: typer.Context, words: Sequence[str]) -> None:
    """Raise UserError if an argument of a command is a path that depends on the current folder."""
    for metavar, value in private.arguments(context, words):
        is_path = metavar in _PATHS or (
            metavar in _PERHAPS_PATHS and (re.search(r"/|\.[a-z]\w*$", value) or os.path.exists(value))
        )
        if is_path and "://" not in value and not value.startswith(("/", "$")):
            raise UserError(
                f"{value}: the command runs on the cluster, where a path must be absolute, or a URI; "
                f"e.g. {os.path.abspath(os.path.expanduser(value))} if the nodes see this folder of yours"
            )


@command
def submit(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="Any tlray command, without the word tlray. Its paths and URIs are those of the cluster. To "
            "run several commands, give one quoted line for the shell, in which each begins with tlray: "
            "'tlray extract IMAGES --out FEATURES && tlray fit FEATURES --out MODEL'.",
        ),
    ],
    address: Dashboard = None,
    name: Annotated[
        str | None,
        option("--name NAME", CLUSTER, "Name of the job; digits are added to it. Default: tlray-COMMAND."),
    ] = None,
    env: Annotated[
        list[str] | None,
        option(
            "--env NAME",
            CLUSTER,
            "Environment variable that the job gets with the value it has here, e.g. "
            "AWS_SECRET_ACCESS_KEY. May be given several times. tlray does not print the value, but everyone "
            "who may use the cluster can read it.",
        ),
    ] = None,
    no_wait: Annotated[
        bool,
        option("--no-wait", CLUSTER, "Return as soon as the job is sent, without waiting for its end."),
    ] = False,
) -> Result:
    """Run any tlray command as a job on a Ray cluster.

    tlray waits for the job and exits with its status. With the job it sends the packages of tlray and of the
    installed plugins, unless the cluster has the same versions. Options of submit come before COMMAND.

    Examples:
        tlray submit -- extract /data/photos --out /data/features
        tlray submit --address http://HEAD:8265 --no-wait -- plan /data/photos
    """
    from tlray.cluster.submit import submit

    for part in _commands(words):
        _check_paths(context, part)
    printed = partial(say, end="")
    result = submit(words, address=address, name=name, env=env or (), wait=not no_wait, say=printed)
    text = f"job {result['job']}: {result['status']}"
    if no_wait:
        return Result(result, text, f"tlray jobs logs {result['job']} --follow --address {result['address']}")
    return Result(result, f"{text} after {result['seconds']:.1f} s")
