"""The command line, run in this process or as the user runs it."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from tlray.cli import app


def commands(group: Any, above: str = "") -> dict[str, Any]:
    """The commands of a group and of those below it, by what the user types."""
    leaves = {}
    for name, command in group.commands.items():
        is_group = hasattr(command, "commands")
        leaves |= commands(command, f"{above}{name} ") if is_group else {f"{above}{name}": command}
    return leaves


COMMANDS = commands(typer.main.get_command(app))


def check_command(line: str) -> None:
    """Whether there is such a tlray command with such options; nothing is run."""
    words = shlex.split(line, comments=True)
    assert words[0] == "tlray", line
    command = typer.main.get_command(app)
    context = command.make_context("tlray", words[1:])
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    if name == "submit":
        words = context.params["words"]
        for one in words[0].split("&&") if len(words) == 1 else [shlex.join(["tlray", *words])]:
            check_command(one)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def script(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as the user runs it."""
    command = [str(Path(sys.executable).with_name("tlray")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def mistake(*arguments: str, status: int = 2) -> str:
    """Run into an error; the message."""
    result = invoke(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    message = "\n".join(line for line in lines if line and not line.startswith(("Usage: ", "Try ")))
    assert 1 <= len(message.splitlines()) <= 2, message
    return message
