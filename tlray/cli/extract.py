"""`tlray extract`: images to features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

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
        found = extract(images, out, config, extend=extend, address=run.address, progress=progress)
    return Result(found, changes(found) + summary(found, "features"))


def summary(found: dict[str, object], what: str) -> str:
    """The counts of a pass over images, for people."""
    from tlray.features.bottleneck import sentence

    passed_over = found.get("passed_over")
    note = f"passed over {passed_over:,} files that are no images by their name\n" if passed_over else ""
    lines = [
        f"{found['images']:,} images: {found['rows']:,} rows, {found['errors']:,} errors "
        f"in {found['seconds']:.1f} s ({found['images_per_second']:.1f} images/s)",
        sentence(found),
        f"{what}: {found['out']}",
    ]
    return note + "\n".join(filter(None, lines))


def changes(found: Mapping[str, Any]) -> str:
    """Which images are not those that were listed before, for people; nothing if all are."""
    added, replaced, removed = (found.get(way, 0) for way in ("added", "replaced", "removed"))
    ways = [f"{added:,} new"] if added else []
    if replaced:
        more = ", ..." if len(found["replaced_paths"]) < replaced else ""
        paths = ", ".join(found["replaced_paths"])
        ways.append(f"{replaced:,} of another size or time ({paths}{more})")
    if removed:
        ways.append(f"{removed:,} removed")
    kept = "; the features that are there are kept" if replaced or removed else ""
    return f"images since they were listed: {', '.join(ways)}{kept}\n" if ways else ""
