"""`tlray verify`: whether features still come out of their images."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli import summaries
from tlray.cli.arguments import Features
from tlray.cli.options import Result, command


@command
def verify(
    features: Features,
    images: Annotated[str, typer.Option(help="what they were extracted from")],
    sample: Annotated[int, typer.Option(min=1, help="how many rows are extracted again")] = 64,
) -> Result:
    """Check that a feature set is whole, and extract a sample of it again to compare."""
    from tlray.features.verify import verify

    result = verify(features, images, sample=sample)
    lines = [
        *summaries.changes(result.changes),
        f"whole: {result.rows:,} rows and {result.errors:,} errors",
        f"{result.sample} rows extracted again: largest relative error {result.largest_error:.2g} "
        f"(tolerance {result.tolerance:.2g})",
    ]
    return Result(result, "\n".join(lines))
