"""`tlray run`: a recipe, from images to the report."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tlray.cli.arguments import Images
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress, print_epoch

if TYPE_CHECKING:
    from tlray.recipes.recipe import StageResult


@command
def run(
    recipe: Annotated[
        str, typer.Argument(help="a name from `tlray recipes list`, or the path of your own .toml file")
    ],
    images: Images,
    out: Annotated[
        str, typer.Option(help="a folder or URI; each stage has a folder or file of its name in it")
    ],
    run: OnRay,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[STAGE.]KEY=VALUE",
            help="change a setting, e.g. epochs=5 or model.batch-size=64; may be given several times. "
            "Without a stage: of the stages that say KEY in the recipe, or if none does, of all that could. "
            "KEY= takes it out of the recipe",
        ),
    ] = None,
) -> Result:
    """Run all stages of a recipe; run again, it goes on where it was."""
    from tlray.recipes import recipe as recipes
    from tlray.recipes.stage import Stage

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def report(stage: Stage, metrics: dict[str, float]) -> None:
        print_epoch(metrics, stage.config.epochs)

    result = recipes.run(
        recipe, images, out, sets or (), address=run.address, say=say, report=report, progress=Progress
    )
    rows = [
        (stage.stage, stage.command, f"{stage.seconds:,.1f} s", _figures(stage)) for stage in result.stages
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{stage:<{widths[0]}}  {name:<{widths[1]}}  {seconds:>{widths[2]}}  {figures}"
        for stage, name, seconds, figures in rows
    ]
    published = recipes.read(recipe).header.get("published")
    lines += [f"published: {published}"] if published else []
    return Result(result, "\n".join([*lines, f"out: {out}"]))


def _figures(stage: StageResult) -> str:
    """The main figures of a stage, for people."""
    if stage.result is None:
        return f"there already; to make it again remove {stage.out}"
    values = stage.result.to_json()
    scores = {**values, **values.get("metrics", {})}
    held_out = ("val_accuracy", "val_loss")
    shown = held_out if set(held_out) <= set(scores) else ("accuracy", "loss")
    parts = [f"{values['images']:,} images"] if "images" in values else []
    parts += [f"{values['errors']:,} errors"] if values.get("errors") else []
    parts += [f"{values['epochs']} epochs, kept {values['kept_epoch']}"] if "epochs" in values else []
    parts += [f"{name} {scores[name]:.4f}" for name in shown if scores.get(name) is not None]
    return ", ".join(parts)
