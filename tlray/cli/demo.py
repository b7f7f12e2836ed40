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
    from tlray.demo import demo

    found = demo(out, address=run.address)
    lines = [f"{name:<12} {value}" for name, value in found.items()]
    return Result(found, "\n".join(lines))
