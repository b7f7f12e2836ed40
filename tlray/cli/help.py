"""The text of `--help`: options under headings, whole summaries, and examples at the end.

It is plain text, the same on a terminal and in a log.
"""

from __future__ import annotations

import textwrap
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

from tlray.core.settings import HEADINGS, OUTPUT

_ARGUMENTS, _OPTIONS = "Arguments", "Options"
_HEADINGS = (_ARGUMENTS, _OPTIONS, *HEADINGS)
_EXAMPLES = "\n\nExamples:\n"
_COLUMN = 27
"""Width of the column of names; the text for a longer name begins on the next line."""
_LINE = 70
"""Length of the text beside a completion. Typer would wrap a longer one, and fish take each line for another
completion."""


class _Readable:
    """The help of commands and groups of commands. It may end with `Examples:`."""

    heading_of_help = OUTPUT
    """The heading under which --help itself is listed."""

    def __init__(self, *, help: str | None, **settings: Any) -> None:
        text, _, settings["epilog"] = (help or "").partition(_EXAMPLES)
        # Without `short_help`, Typer cuts off the summary in the list of commands.
        settings["short_help"] = text.partition("\n\n")[0].replace("\n", " ")
        super().__init__(help=text, **settings)  # type: ignore[call-arg]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line, with the required options, and without Typer's braces: {IMAGES}."""
        command: Any = self
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        required = [option for option in command.params if option.required and option.opts[0].startswith("-")]
        return [
            *(piece.replace("{", "").replace("}", "") for piece in pieces),
            *(option.get_help_record(ctx)[0] for option in required),
        ]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options under their headings."""
        command: Any = self
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        for parameter in command.get_params(ctx):
            if isinstance(parameter, TyperArgument):
                sections[_ARGUMENTS].append((parameter.display_name_raw, parameter.help or ""))
            else:
                is_help = parameter is command.get_help_option(ctx)
                heading = self.heading_of_help if is_help else parameter.rich_help_panel or _OPTIONS
                sections[heading].append(parameter.get_help_record(ctx))
        names = [name for rows in sections.values() for name, _ in rows]
        width = max(len(name) for name in names if len(name) <= _COLUMN)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=width)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples; they are not wrapped, so that they can be copied."""
        if examples := getattr(self, "epilog", None):
            with formatter.section("Examples"):
                for line in examples.splitlines():
                    formatter.write(f"  {line.strip()}\n")

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The commands and options that begin with `incomplete`, each with a shortened text."""
        items: list[Any] = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        for item in items:
            item.help = textwrap.shorten(item.help or "", _LINE, placeholder=" …")
        return items


class Command(_Readable, TyperCommand):
    """A command with readable help."""


class Group(_Readable, TyperGroup):
    """A group of commands with readable help."""

    heading_of_help = _OPTIONS

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)
