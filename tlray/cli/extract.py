"""`tlray extract`: images to features."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli.arguments import Images
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress
from tlray.config import ExtractConfig


@command
def extract(
    images: Images,
    out: Annotated[str, typer.Option(help="the feature set to write: a new folder or URI")],
    config: ExtractConfig,
    run: OnRay,
) -> Result:
    """Put every image through a pretrained network once and keep its features as Parquet.

    Run again, it goes on where it was; a finished set is recognised at once.
    """
    from tlray.extract import extract

    with Progress("extracting") as progress:
        found = extract(images, out, config, address=run.address, progress=progress)
    return Result(found, summary(found, "features"))


def summary(found: dict[str, object], what: str) -> str:
    """The counts of a pass over images, for people."""
    from tlray.verdict import sentence

    passed_over = found.get("passed_over")
    note = f"passed over {passed_over:,} files that are no images by their name\n" if passed_over else ""
    lines = [
        f"{found['images']:,} images: {found['rows']:,} rows, {found['errors']:,} errors "
        f"in {found['seconds']:.1f} s ({found['images_per_second']:.1f} images/s)",
        sentence(found),
        f"{what}: {found['out']}",
    ]
    return note + "\n".join(filter(None, lines))
