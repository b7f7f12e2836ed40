"""`tlray recipes`: whole jobs that are written down as data."""

from __future__ import annotations

import textwrap

import typer

from tlray.cli.arguments import Recipe
from tlray.cli.help import Command, Group
from tlray.cli.options import Result, command

app = typer.Typer(
    name="recipes",
    help="List and show recipes: a recipe is a file that describes a whole job for `tlray run`.",
    cls=Group,
    no_args_is_help=True,
)
_INDENT = "    "


def _list() -> Result:
    """List the recipes that come with tlray.

    Examples:
        tlray recipes list
    """
    from tlray.recipes import recipe

    found = [recipe.read(name) for name in recipe.names()]
    blocks = []
    for one in found:
        lines = [one.header["title"], f"published: {one.header['published']}"]
        blocks.append("\n".join([one.name, *(f"{_INDENT}{line}" for line in lines)]))
    return Result({"recipes": [one.to_json() for one in found]}, "\n".join(blocks))


def _show(name: Recipe) -> Result:
    """Show a recipe, and the commands that it runs.

    The output is a recipe itself: save it to a file to start one of your own.

    Examples:
        tlray recipes show vgg16-finetune
    """
    from tlray.recipes import recipe

    found = recipe.read(name)
    commands = "\n".join(stage.line() for stage in found.stages)
    said = f"It runs, one after the other:\n{commands}"
    return Result(found.to_json(), f"{found.text.rstrip()}\n\n{textwrap.indent(said, '# ')}")


app.command("list", cls=Command)(command(_list))
app.command("show", cls=Command)(command(_show))
