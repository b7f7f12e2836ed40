"""`tlray verify`: whether features still come out of their images."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli import summaries
from tlray.cli.arguments import Features
from tlray.cli.options import Result, command
from tlray.core.config import IMAGES


@command
def verify(
    features: Features,
    images: Annotated[
        str,
        typer.Option(
            metavar="IMAGES",
            rich_help_panel=IMAGES.title,
            help="Images that the features were extracted from, wherever they are now.",
        ),
    ],
    sample: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=IMAGES.title,
            help="Number of images that are extracted again.",
        ),
    ] = 64,
) -> Result:
    """Check that a feature set is complete, and extract a sample of it again to compare.

    Examples:
        tlray verify features --images photos/
    """
    from tlray.features.verify import verify

    result = verify(features, images, sample=sample)
    lines = [
        *summaries.changes(result.changes),
        f"whole: {result.rows:,} rows and {result.errors:,} errors",
        f"{result.sample} rows extracted again: largest relative error {result.largest_error:.2g} "
        f"(tolerance {result.tolerance:.2g})",
    ]
    return Result(result, "\n".join(lines))
