"""`tlray demo`: the whole job on real images, in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli.options import OnRay, Result, command


@command
def demo(
    run: OnRay,
    out: Annotated[str, typer.Option(help="a folder for images, features, model and report")] = "demo",
) -> Result:
    """Handwritten digits, from image files to a trained head, a report and predictions."""
    from tlray.recipes.demo import demo

    found = demo(out, address=run.address)
    shown = {**vars(found), "accuracy": f"{found.accuracy:.3f}", "seconds": f"{found.seconds:.0f}"}
    lines = [f"{name:<12} {value}" for name, value in shown.items()]
    return Result(found, "\n".join(lines))
