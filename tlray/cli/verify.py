"""`tlray verify`: a check that a feature set is complete and fits its images."""

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
    sample: Annotated[int, option("--sample N", IMAGES, "Number of images that are extracted again.")] = 64,
) -> Result:
    """Check that each image has features or an error, and extract a sample of them again to compare.

    This runs in one process on this machine, without Ray.

    Examples:
        tlray verify features --images photos/
    """
    from tlray.features.verify import verify

    result = verify(features, images, sample=sample)
    amount = summaries.amount
    lines = [
        *summaries.changes(result.changes),
        f"complete: {amount(result.rows, 'row')} and {amount(result.errors, 'error')}",
        f"{amount(result.sample, 'row')} extracted again; the largest relative error is "
        f"{result.largest_error:.2g}, and up to {result.tolerance:.2g} is allowed",
    ]
    return Result(result, "\n".join(lines))
