"""`tlray recipes`: whole jobs, each described in one file."""

from __future__ import annotations

import textwrap

from tlray.cli.arguments import Recipe
from tlray.cli.options import Result, group

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


app = group(
    "recipes", "List and show recipes: files that each describe a whole job for `tlray run`.", _list, _show
)
