"""Results as text for people: what several commands say in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlray.core.results import ImageError, InferenceCounts, TrainingSummary

if TYPE_CHECKING:
    from tlray.images.diff import Changes


def counts(result: InferenceCounts, *, was_complete: bool = False) -> list[str]:
    """What became of the images of a pass, and what limited it."""
    from tlray.features.bottleneck import sentence

    line = f"{result.images:,} images: {result.rows:,} rows, {result.errors:,} errors"
    if was_complete:
        return [f"complete already, so there was nothing to do: {line}"]
    rate = f" in {result.seconds:.1f} s ({result.images_per_second:.1f} images/s)"
    return [line + rate, *sentence(result).splitlines()]


def errors(first: Sequence[ImageError], count: int, uri: str | None) -> list[str]:
    """The first of the images that could not be used, and where to find all of them."""
    if not count:
        return []
    shown = [f"  {error.path}: {error.message} ({error.error})" for error in first]
    return [f"{count:,} images could not be used; all of them are in {uri}", *shown]


def training(result: TrainingSummary) -> list[str]:
    """What became of a training, and what limited it."""
    from tlray.features.bottleneck import sentence

    lines = [
        f"{result.rows:,} rows, {result.trainable_tensors} of {result.tensors} tensors trained, "
        f"{result.epochs} epochs in {result.seconds:.1f} s"
    ]
    if result.stopped_epoch is not None:
        lines.append(
            f"stopped early after epoch {result.stopped_epoch + 1} ({result.stopped_epoch} as Keras counts)"
        )
    lines += sentence(result).splitlines()
    metrics = ", ".join(f"{name} {_number(value)}" for name, value in result.metrics.items())
    return [*lines, f"kept epoch {result.kept_epoch}: {metrics}"]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def changes(found: Changes | None) -> list[str]:
    """How images differ from those that were listed before; nothing if they do not."""
    if found is None or not (found.added or found.replaced or found.removed):
        return []
    ways = [f"{found.added:,} new"] if found.added else []
    if found.replaced:
        more = ", ..." if len(found.replaced_paths) < found.replaced else ""
        paths = ", ".join(found.replaced_paths)
        ways.append(f"{found.replaced:,} of another size or time ({paths}{more})")
    if found.removed:
        ways.append(f"{found.removed:,} removed")
    kept = "; the features that are there are kept" if found.replaced or found.removed else ""
    return [f"images since they were listed: {', '.join(ways)}{kept}"]
