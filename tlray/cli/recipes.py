"""`tlray recipes`: the recipes that come with tlray."""

from __future__ import annotations

from tlray.cli.arguments import Recipe
from tlray.cli.options import Result, group


def _list() -> Result:
    """List the recipes that come with tlray.

    Examples:
        tlray recipes list
    """
    from tlray.recipes import recipe

    known = [recipe.read(name) for name in recipe.names()]
    lines = [f"{r.name}\n    {r.header['title']}\n    published: {r.header['published']}" for r in known]
    return Result({"recipes": [r.to_json() for r in known]}, "\n".join(lines))


def _show(name: Recipe) -> Result:
    """Show a recipe, and the commands that it runs.

    The output is a recipe itself: save it to a file to start one of your own.

    Examples:
        tlray recipes show vgg16-finetune
    """
    from tlray.recipes import recipe

    shown = recipe.read(name)
    lines = ["This recipe runs these commands in order:", *(stage.line() for stage in shown.stages)]
    comment = "\n".join(f"# {line}" for line in lines)
    return Result(shown.to_json(), f"{shown.text.rstrip()}\n\n{comment}")


app = group(
    "recipes", "List and show recipes: files that each describe a whole job for `tlray run`.", _list, _show
)
