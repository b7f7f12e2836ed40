"""`tlray extract`: features of images."""

from __future__ import annotations

import shlex
from typing import Annotated

from tlray.cli import summaries
from tlray.cli.arguments import Images, option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import AccountPrinter, Progress
from tlray.core.config import ExtractConfig
from tlray.core.settings import IMAGES, OUTPUT


@command
def extract(
    images: Images,
    out: Annotated[
        str,
        option(
            "--out FOLDER",
            OUTPUT,
            "Folder or URI to write the feature set to. It must be new, empty, or from an earlier run with "
            "the same options.",
        ),
    ],
    config: ExtractConfig,
    run: OnRay,
    extend: Annotated[
        bool,
        option("--extend", IMAGES, "Also extract images that were added since the feature set was begun."),
    ] = False,
) -> Result:
    """Run every image through a pretrained network once, and store the features as Parquet.

    Run the same command again to continue a job that was stopped. A finished feature set is not computed
    again.

    Examples:
        tlray extract photos/ --out features
        tlray extract s3://bucket/photos --out s3://bucket/features --split 0.8
    """
    from tlray.features.extract import extract

    with Progress("extracting") as progress:
        result = extract(
            images,
            out,
            config,
            extend=extend,
            address=run.address,
            progress=progress,
            announce=AccountPrinter(),
        )
    lines = summaries.changes(result.changes)
    lines += summaries.counts(result, was_complete=result.was_complete)
    lines += summaries.errors(result.first_errors, result.errors, result.errors_uri)
    now = shlex.join(["tlray", "fit", out, "--out", "model"]) if result.classes else ""
    return Result(result, "\n".join([*lines, f"features: {result.out}"]), now)
