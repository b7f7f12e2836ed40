"""`tlray extract`: images to features."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from tlray.cli import summaries
from tlray.cli.arguments import Images
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress
from tlray.core.config import ExtractConfig


@command
def extract(
    images: Images,
    out: Annotated[str, typer.Option(help="the feature set to write: a new folder or URI")],
    config: ExtractConfig,
    run: OnRay,
    extend: Annotated[
        bool, typer.Option("--extend", help="look for images that came since, and extract them alone")
    ] = False,
) -> Result:
    """Put every image through a pretrained network once and keep its features as Parquet.

    Run again, it goes on where it was; a finished set is recognised at once.
    """
    from tlray.features.extract import extract

    with Progress("extracting") as progress:
        result = extract(images, out, config, extend=extend, address=run.address, progress=progress)
    lines = summaries.changes(result.changes)
    if result.passed_over:
        lines.append(f"{result.passed_over:,} files without an image extension were passed over")
    lines += summaries.counts(result, was_complete=result.was_complete)
    lines += summaries.errors(result.first_errors, result.errors, result.errors_uri)
    now = shlex.join(["tlray", "fit", out, "--out", "model"]) if result.classes else ""
    return Result(result, "\n".join([*lines, f"features: {result.out}"]), now)
