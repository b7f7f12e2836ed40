"""Counts images by split and class; refuses labels that are surely wrong, and warns of doubtful ones."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from tlray.core.errors import UserError
from tlray.core.results import Account
from tlray.images import filetypes
from tlray.images.listing import Images

Counts = Mapping[tuple[str | None, ...], int]
"""The number of images for each pair of split and label."""
Announce = Callable[[Account], None]
"""Called with an account before the first image is decoded, and with the whole account at the end."""

_TRAINING = (None, "train")
"""The splits whose images are trained on."""
_BLANK = re.compile("[\\s\u00ad\u200b\u200e\u200f\u2060\ufeff]+")
"""White space, and characters that are never visible."""
_EXAMPLES = 3


class LabelError(UserError):
    """The labels or the splits of the images are surely wrong."""


class Tally:
    """Counts images by split and label while they are listed."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str | None, ...]] = Counter()
        self._forms: dict[str, str] = {}
        """The labels, each by the form that it has in common with labels that only look different."""

    def add(self, split: str | None, label: str | None, images: int = 1) -> None:
        """Count images; raise LabelError if an earlier label differs only by white space or Unicode form."""
        is_new = (split, label) not in self.counts
        self.counts[split, label] += images
        if is_new and label is not None:
            form = _BLANK.sub(" ", unicodedata.normalize("NFC", label)).strip()
            if (other := self._forms.setdefault(form, label)) != label:
                raise LabelError(
                    f"the labels {_shown(self.counts, other)} and {_shown(self.counts, label)} differ only "
                    "by white space or Unicode form, but would be two classes: give both the same name"
                )

    def account(self, images: Images, *, complete: bool) -> Account:
        """The account of the images that are counted so far; another thread may be counting.

        Raises:
            LabelError: all images are counted, and a class has only files that cannot be read here, or only
                validation images.
        """
        counts, splits, labels = dict(self.counts), Counter[str](), Counter[str]()
        if complete:
            _check_unread(counts, images.unread_classes)
            check_classes(counts, "validation")
        for (split, label), number in counts.items():
            splits[split or ""] += number
            labels[label or ""] += number
        unlabelled, _ = labels.pop("", 0), splits.pop("", 0)
        return Account(
            images=sum(counts.values()),
            complete=complete,
            splits=dict(sorted(splits.items())),
            classes=dict(sorted(labels.items())),
            unlabelled=unlabelled,
            columns=dict(images.columns),
            passed_over=dict(images.passed_over.most_common()),
            unread=dict(images.unread.most_common()),
            hidden=images.hidden,
            warnings=[*images.warnings, *(_doubts(counts, images) if complete else _alike(counts))],
        )


def training_classes(counts: Counts) -> list[str]:
    """The labels of the training images, sorted."""
    return sorted({label for split, label in counts if split in _TRAINING and label is not None})


def check_classes(counts: Counts, validation: str) -> None:
    """Raise LabelError if a class has images in this split, but no training images."""
    if strange := _others(counts, validation):
        raise LabelError(f"{strange}: add training images, or take these {validation} images away")


def check_labels(counts: Counts, split: str) -> None:
    """Raise LabelError if this split has images, but none of them has a label."""
    if lack := _unlabelled(counts, split):
        raise LabelError(lack)


def warn(account: Account) -> None:
    """Give the warnings of an account to Python's `warnings`, which prints each of them once."""
    for line in account.warnings:
        warnings.warn(line, stacklevel=3)


def _check_unread(counts: Counts, unread: Mapping[tuple[str | None, str | None, str], int]) -> None:
    splits = {split for split, _ in counts}
    for (split, label, suffix), files in unread.items():
        if label is not None and not any((name, label) in counts for name in ([split] if split else splits)):
            raise LabelError(
                f"the class {label!r}{f' of the split {split}' if split else ''} would be empty, because its "
                f"{files:,} {suffix} files cannot be read here: {filetypes.remedy(suffix)}, or take them away"
            )


def _doubts(counts: Counts, images: Images) -> Iterator[str]:
    """The warnings that follow from the counts of all images."""
    yield from _alike(counts)
    labels, known = {label for _, label in counts} - {None}, training_classes(counts)
    if not labels:
        yield (
            "no image has a label, which `tlray fit` needs: give images with one folder for each class, or a "
            "table with a column of labels (--label-column NAME)"
        )
        return
    if len(labels) == 1 and not images.warnings:  # A warning that the folder is too high says more.
        yield (
            f"all labelled images are of one class, {min(map(repr, labels))}, but a head needs two at least: "
            "give the folder that contains the folders of the classes"
        )
    for split in sorted({split for split, _ in counts if split is not None}):
        shared = sum((split, label) in counts for label in known)
        if lack := _unlabelled(counts, split):
            yield lack
        elif strange := _others(counts, split):
            yield f"{strange}: `tlray evaluate` refuses classes that the model does not know"
        elif 2 * shared < len(known):
            yield (
                f"only {shared} of the {len(known)} training classes have {split} images: if that is not "
                f"meant, give the classes of {split} the same names as those of train"
            )


def _alike(counts: Counts) -> Iterator[str]:
    """A warning for each pair of labels that may be of one class; of many pairs, for the first few."""
    groups = defaultdict(list)
    for label in sorted({label for _, label in counts if label is not None}):
        form = re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label)).casefold()
        groups[re.sub(r"^0+(?=\d)|(?<=\d)\.0+$", "", form)].append(label)
    pairs = [(group[0], other) for group in groups.values() for other in group[1:]]
    for first, other in pairs[:_EXAMPLES]:
        yield (
            f"the classes {_shown(counts, first)} and {_shown(counts, other)} differ only by case, by spaces "
            "or hyphens, or in how a number is written: if they are one class, give both the same name"
        )
    if len(pairs) > _EXAMPLES:
        yield f"{len(pairs) - _EXAMPLES:,} more pairs of classes differ as little as these"


def _shown(counts: Counts, label: str) -> str:
    """A label and its numbers of images; it is escaped if Unicode can write it in several ways."""
    rows = [(split, number) for (split, name), number in counts.items() if name == label]
    images = [f"{n:,} in {split}" if split else f"{n:,} image{'s' * (n != 1)}" for split, n in rows]
    is_unique = unicodedata.normalize("NFC", label) == unicodedata.normalize("NFD", label)
    return f"{repr(label) if is_unique else ascii(label)} ({', '.join(images)})"


def _unlabelled(counts: Counts, split: str) -> str:
    """A statement on this split if none of its images has a label; empty otherwise."""
    number = counts.get((split, None), 0)
    if not number or any(name == split and label is not None for name, label in counts):
        return ""
    have_none = "image has no label" if number == 1 else "images have no labels"
    otherwise = ", or hold out training images with --validation 0.2" if split == "validation" else ""
    return f"the {number:,} {split} {have_none}: put them into {split}/CLASS/{otherwise}"


def _others(counts: Counts, split: str | None) -> str:
    """A statement on the classes that this split has, and training images do not; empty if there are none."""
    known = training_classes(counts)
    labels = sorted({label for name, label in counts if name == split and label is not None} - set(known))
    if not known or not labels:
        return ""
    names = ", ".join(map(repr, labels[:_EXAMPLES])) + (", ..." if len(labels) > _EXAMPLES else "")
    subject = f"the class {names} has" if len(labels) == 1 else f"the {len(labels):,} classes {names} have"
    images = sum(counts[split, label] for label in labels)
    return f"{subject} {images:,} {split} image{'s' * (images != 1)} and no training images"
