"""`tlray verify`: whether features still come out of their images."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli.arguments import Features
from tlray.cli.extract import changes
from tlray.cli.options import Result, command


@command
def verify(
    features: Features,
    images: Annotated[str, typer.Option(help="what they were extracted from")],
    sample: Annotated[int, typer.Option(min=1, help="how many rows are extracted again")] = 64,
) -> Result:
    """Check that a feature set is whole, and extract a sample of it again to compare."""
    from tlray.features.verify import verify

    found = verify(features, images, sample=sample)
    return Result(
        found,
        f"{changes(found)}whole: {found['rows']:,} rows and {found['errors']:,} errors\n"
        f"{found['sample']} rows extracted again: largest relative error {found['largest_error']:.2g} "
        f"(tolerance {found['tolerance']:.2g})",
    )
