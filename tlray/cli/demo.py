"""`tlray demo`: the whole job on real images, in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli.options import OnRay, Result, command
from tlray.core.config import OUTPUT


@command
def demo(
    run: OnRay,
    out: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT.title,
            help="Local folder to write the images, features, model, report and predictions to.",
        ),
    ] = "demo",
) -> Result:
    """Try a whole job on 1,797 images of handwritten digits, which come with scikit-learn.

    The demo extracts features, trains a head, evaluates the model and predicts; on 2 cores it takes a minute.

    Examples:
        tlray demo
    """
    from tlray.recipes.demo import demo

    found = demo(out, address=run.address)
    shown = {**vars(found), "accuracy": f"{found.accuracy:.3f}", "seconds": f"{found.seconds:.0f}"}
    lines = [f"{name:<12} {value}" for name, value in shown.items()]
    return Result(found, "\n".join(lines))
