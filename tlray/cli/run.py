"""`tlray run`: all stages of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tlray.cli.arguments import Images, Recipe, option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import AccountPrinter, Progress, print_epoch, say
from tlray.cli.tables import table
from tlray.core.settings import OUTPUT

if TYPE_CHECKING:
    from tlray.recipes.recipe import StageResult


@command
def run(
    recipe: Recipe,
    images: Images,
    out: Annotated[
        str,
        option(
            "--out FOLDER",
            OUTPUT,
            "Folder or URI to write to. Each stage of the recipe writes a folder or file in it that is "
            "named after the stage.",
        ),
    ],
    run: OnRay,
    sets: Annotated[
        list[str] | None,
        option(
            "--set [STAGE.]KEY=VALUE",
            None,
            "Change a setting of the recipe, e.g. epochs=5 or head.batch-size=64; KEY= removes it. Without "
            "STAGE it changes every stage that sets KEY; if no stage sets it, every stage that accepts KEY. "
            "May be given several times.",
        ),
    ] = None,
) -> Result:
    """Run a recipe: a whole job of several commands, described in one file.

    Run the same command again to continue a job that was stopped.

    Examples:
        tlray run vgg16-finetune-plus photos/ --out all
        tlray run my.toml photos/ --out all --set epochs=5
    """
    from tlray.recipes import recipe as recipes

    result = recipes.run(
        recipe,
        images,
        out,
        sets or (),
        address=run.address,
        say=say,
        report=lambda stage, metrics: print_epoch(metrics, stage.config.epochs),
        announce=AccountPrinter(),
        progress=Progress,
    )
    rows = [
        (stage.stage, stage.command, f"{stage.seconds:,.1f} s", _figures(stage)) for stage in result.stages
    ]
    lines = [table(rows, right={2})]
    published = recipes.read(recipe).header.get("published")
    lines += [f"published: {published}"] if published else []
    return Result(result, "\n".join([*lines, f"out: {out}"]))


def _figures(stage: StageResult) -> str:
    """The main figures of a stage."""
    if stage.result is None:
        return f"exists already; to make it again, remove {stage.out}"
    values = stage.result.to_json()
    scores = {**values, **values.get("metrics", {})}
    held_out = ("val_accuracy", "val_loss")
    names = held_out if set(held_out) <= set(scores) else ("accuracy", "loss")
    parts = [f"{values['images']:,} images"] if "images" in values else []
    parts += [f"{values['errors']:,} errors"] if values.get("errors") else []
    parts += [f"{values['epochs']} epochs, kept {values['kept_epoch']}"] if "epochs" in values else []
    parts += [f"{name} {scores[name]:.4f}" for name in names if scores.get(name) is not None]
    return ", ".join(parts)
