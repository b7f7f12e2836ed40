"""`tlray verify`: whether a feature set is complete and still fits its images."""

from __future__ import annotations

from typing import Annotated

from tlray.cli import summaries
from tlray.cli.arguments import Features, option
from tlray.cli.options import Result, command
from tlray.core.settings import IMAGES


@command
def verify(
    features: Features,
    images: Annotated[
        str,
        option(
            "--images IMAGES", IMAGES, "Images that the features were extracted from, wherever they are now."
        ),
    ],
    sample: Annotated[
        int, option("--sample N", IMAGES, "Number of images that are extracted again.", min=1)
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
