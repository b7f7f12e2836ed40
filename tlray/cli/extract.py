"""`tlray extract`: images to features."""

from __future__ import annotations

from typing import Annotated, Any

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
    extend: Annotated[
        bool, typer.Option("--extend", help="look for images that came since, and extract them alone")
    ] = False,
) -> Result:
    """Put every image through a pretrained network once and keep its features as Parquet.

    Run again, it goes on where it was; a finished set is recognised at once.
    """
    from tlray.extract import extract

    with Progress("extracting") as progress:
        found = extract(images, out, config, extend=extend, address=run.address, progress=progress)
    return Result(found, changes(found) + summary(found, "features"))


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


def changes(found: dict[str, object]) -> str:
    """Which images are not those that were extracted, for people; nothing if they are."""
    ways = {
        "added": "new",
        "replaced": "of another size or time than when they were extracted: their features are the old ones",
        "removed": "gone: their features are kept",
    }
    lines = [f"{found[way]:,} images are {what}" for way, what in ways.items() if found.get(way)]
    paths: Any = found.get("replaced_paths")
    return "".join(f"{line}\n" for line in lines) + (f"replaced: {', '.join(paths)}, ...\n" if paths else "")
