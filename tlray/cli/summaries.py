"""Results as text for people, where several commands print the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from tlray.core.results import Account, ImageError, InferenceCounts, TrainingSummary
from tlray.core.text import escaped

if TYPE_CHECKING:
    from tlray.images.index_diff import Changes

COMPLETE = "already complete, so nothing was computed"


def amount(number: float, noun: str) -> str:
    """A number with its noun, e.g. "1 image" or "1,200 images"."""
    return f"{number:,.12g} {noun}{'' if number == 1 else 's'}"


def account(account: Account) -> list[str]:
    """What a job has understood of its images, in a few lines, and its warnings."""
    from tlray.images import filetypes

    splits = dict(account.splits)
    if splits and (rest := account.images - sum(splits.values())):
        splits["without a split"] = rest
    parts = [_numbers(splits)] if splits else []
    if number := len(account.classes):
        parts.append(f"{number:,} class{'es' * (number > 1)}: {_numbers(account.classes)}")
    if account.unlabelled:
        parts.append(f"{account.unlabelled:,} without a label" if number else "no labels")
    so_far = "" if account.complete else " so far"
    lines = [f"found {amount(account.images, 'image')}{so_far}: {'; '.join(parts)}"]
    if account.columns:
        lines.append(", ".join(f"{name}s from {_visible(of)}" for name, of in account.columns.items()))
    skipped = [_numbers(account.passed_over)] if account.passed_over else []
    skipped += [f"{account.hidden:,} hidden"] if account.hidden else []
    skipped += [f"{n:,} {name} are not read: {filetypes.remedy(name)}" for name, n in account.unread.items()]
    lines += [f"passed over: {'; '.join(skipped)}"] if skipped else []
    return [escaped(line) for line in (*lines, *(f"warning: {line}" for line in account.warnings))]


def _numbers(counts: Mapping[str, int]) -> str:
    """The first ten names with their numbers."""
    parts = [f"{_visible(name)} {number:,}" for name, number in islice(counts.items(), 10)]
    return ", ".join([*parts, *(["..."] if len(counts) > len(parts) else [])])


def _visible(name: str) -> str:
    """A name, in quotes if its white space or a character in it could not be seen otherwise."""
    return name if name.isprintable() and name == " ".join(name.split()) != "" else repr(name)


def counts(result: InferenceCounts, *, was_complete: bool = False) -> list[str]:
    """The counts of a pass over images, and what limited its speed."""
    from tlray.features.bottleneck import sentence

    line = f"{amount(result.images, 'image')}: {amount(result.rows, 'row')}, {amount(result.errors, 'error')}"
    if was_complete:
        return [COMPLETE, line]
    rate = f" in {result.seconds:.1f} s ({result.images_per_second:.1f} images/s)"
    return [line + rate, *sentence(result).splitlines()]


def errors(first: Sequence[ImageError], number: int, uri: str | None) -> list[str]:
    """The first of the images that could not be used, and the file or folder that lists all of them."""
    if not number:
        return []
    rows = [escaped(f"  {error.path}: {error.message} ({error.error})") for error in first]
    return [f"{amount(number, 'image')} could not be used; all errors are in {uri}", *rows]


def training(result: TrainingSummary) -> list[str]:
    """The counts and metrics of a training, and what limited its speed."""
    from tlray.features.bottleneck import sentence

    lines = [
        f"{amount(result.epochs, 'epoch')} on {amount(result.rows, 'row')} in {result.seconds:.1f} s; "
        f"{result.trainable_tensors} of {amount(result.tensors, 'weight tensor')} trained"
    ]
    if (stopped := result.stopped_epoch) is not None:
        lines.append(f"stopped early after epoch {stopped + 1}, which Keras counts as {stopped}")
    lines += sentence(result).splitlines()
    metrics = [f"{k} {'not finite' if v is None else f'{v:.4f}'}" for k, v in result.metrics.items()]
    return [*lines, f"the model has the weights of epoch {result.kept_epoch}: {', '.join(metrics)}"]


def changes(changes: Changes | None) -> list[str]:
    """The differences between the images and an earlier list of them; nothing if there are none."""
    if changes is None or not (changes.added or changes.replaced or changes.removed):
        return []
    parts = [f"{changes.added:,} new"] if changes.added else []
    if changes.replaced:
        more = ", ..." if len(changes.replaced_paths) < changes.replaced else ""
        paths = escaped(", ".join(changes.replaced_paths))
        parts.append(f"{changes.replaced:,} with another size or time ({paths}{more})")
    parts += [f"{changes.removed:,} removed"] if changes.removed else []
    stale = "; their stored features are kept" if changes.replaced or changes.removed else ""
    return [f"changes since the images were listed: {', '.join(parts)}{stale}"]
