"""`tlray recipes`: whole jobs that are written down as data."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from tlray.cli.options import Result, command

app = typer.Typer(
    name="recipes", help="Whole jobs as data files: the published ones, and yours.", no_args_is_help=True
)
_INDENT = "    "


def _list() -> Result:
    """List the recipes that come with tlray."""
    from tlray.recipes import recipe

    found = [recipe.read(name) for name in recipe.names()]
    blocks = []
    for one in found:
        lines = [one.header["title"], f"published: {one.header['published']}"]
        blocks.append("\n".join([one.name, *(f"{_INDENT}{line}" for line in lines)]))
    return Result({"recipes": [one.to_json() for one in found]}, "\n".join(blocks))


def _show(
    name: Annotated[
        str, typer.Argument(help="of a recipe, as `tlray recipes list` prints it; or the path of your own")
    ],
) -> Result:
    """Show a recipe and the commands it stands for; the text is a recipe again, to start your own from."""
    from tlray.recipes import recipe

    found = recipe.read(name)
    commands = "\n".join(stage.line() for stage in found.stages)
    said = f"It runs, one after the other:\n{commands}"
    return Result(found.to_json(), f"{found.text.rstrip()}\n\n{textwrap.indent(said, '# ')}")


app.command("list")(command(_list))
app.command("show")(command(_show))
