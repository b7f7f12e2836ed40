"""Gives the images of a tar file their labels and splits, from their WebDataset samples or folders."""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tlray.images.archives.base import ArchivedImage, Damaged
from tlray.images.conventions import likely_columns
from tlray.images.layout import Layout, folders_above

_MAX_WAITING = 1000
"""The most images that wait for their labels. A label that is farther from its image fails the listing."""
_MAX_LABEL, _MAX_JSON = 1 << 10, 1 << 20
"""The most bytes of a member with a label."""
_MAX_DOTS = 8
"""The most dots in the name of an image at which a label's name may end."""


@dataclass
class _Label:
    member: str
    text: str | None
    """Empty if the image has no label; None if this is no class name, an error once an image has it."""
    column: str
    used: bool = False


class Samples:
    """Holds images back until their labels are known, and yields them in the order of the file.

    A label is the text of a member such as `1.cls`, whose suffix is a name of label columns, or the value of
    such a key in `1.json`. It belongs to all images whose names begin with `1.`; of several labels that fit,
    the longest name counts. An image without one has the label of its folder. The folders at the top are
    splits if all of them are named so, judging from the first images.
    """

    def __init__(self, given: str | None) -> None:
        """`given` is the `--label-column` of the user; None leaves the choice to tlray, "none" takes none."""
        self.has_labels = False
        """Whether there are labels or folders, as far as the file was read."""
        self.columns: dict[str, list[str]] = {}
        """The suffixes, or keys of .json members, that have the labels."""
        self.warnings: dict[str, str] = {}
        """What is doubtful, by kind."""
        self._given = given
        self._waiting: deque[ArchivedImage] = deque()
        self._labels: dict[str, _Label] = {}
        self._wanted, self._labelled = array("q"), array("q")
        """Hashes of the names for which images found no label, and of the names of all labels."""
        self._layout: Layout | None = None

    def add(self, image: ArchivedImage) -> Iterator[ArchivedImage]:
        """Add the next image; yields an earlier one."""
        self.has_labels |= bool(folders_above(image.name))
        self._waiting.append(image)
        if len(self._waiting) > _MAX_WAITING:
            yield self._next()

    def add_other(self, member: str, read: Callable[[int], bytes]) -> Iterator[str]:
        """Add the next other member; yields the names of members that are no label of an image.

        `read` returns the bytes of the member; it raises ValueError if they are more than its argument.
        """
        name, _, suffix = member.rpartition(".")
        label = self._label(member, suffix.lower(), read) if name else None
        if label is None:
            yield member
            return
        self.has_labels = True
        self._labelled.append(hash(name))
        other = self._labels.setdefault(name, label)
        if other.text != label.text:
            # A .json member may have been made for other things, so it gives way.
            best, rest = sorted((other, label), key=lambda choice: choice.member.lower().endswith(".json"))
            both = f"{best.member!r} is {best.text!r}, and {rest.member!r} is {rest.text!r}"
            if other.column == label.column:
                raise Damaged(f"a sample has two labels ({both}): remove one")
            self._labels[name] = best
            if rest.text is not None:
                self.warnings["two labels"] = f"of two labels the first is taken: {both}"
        if len(self._labels) > 2 * _MAX_WAITING:
            yield from self._drop(next(iter(self._labels)))

    def finish(self) -> Iterator[ArchivedImage | str]:
        """The last images, and the names of the last members that are no label of an image."""
        while self._waiting:
            yield self._next()
        for name in list(self._labels):
            yield from self._drop(name)

    def late(self) -> set[int]:
        """Hashes of `sample_names` of images whose label is too far from them."""
        return set(np.intersect1d(self._wanted, self._labelled).tolist())

    def _drop(self, name: str) -> Iterator[str]:
        label = self._labels.pop(name)
        if not label.used:
            yield label.member
        if not label.used and label.text is not None:
            self.warnings["unused"] = (
                f"labels without an image, e.g. {label.member!r}; "
                "an image and its label have the same name but for the suffix"
            )

    def _label(self, member: str, suffix: str, read: Callable[[int], bytes]) -> _Label | None:
        """The label in a member; None if it is of another kind."""
        try:
            if self._choose([suffix]):
                return _Label(member, _line(read(_MAX_LABEL).decode("utf-8-sig")), suffix)
            if suffix != "json" or self._given == "none":
                return None
            content = json.loads(read(_MAX_JSON))
            keys = self._choose(list(content) if isinstance(content, dict) else [])
            return _Label(member, _line(content[keys[0]]), keys[0]) if keys else None
        except (ValueError, RecursionError):
            return _Label(member, None, suffix)

    def _choose(self, names: list[str]) -> list[str]:
        if self._given is None:
            return likely_columns("label", names)
        return [name for name in names if name.strip() == self._given != "none"]

    def _next(self) -> ArchivedImage:
        if self._layout is None:
            tops = [folders[0] for image in self._waiting if (folders := folders_above(image.name))]
            self._layout = Layout.of(list(dict.fromkeys(tops)))
        image = self._waiting.popleft()
        split, folder = self._layout.meaning(image.name)
        if self._layout.has_splits and folders_above(image.name) and split is None:
            raise Damaged(f"{image.name!r} lies beside folders of splits: make one file for each split")
        if self._layout.warnings:
            self.warnings["folders"] = self._layout.warnings[0]
        label = self._label_of(image.name)
        label = folder if label is None else label
        return image._replace(split=split, label=label)

    def _label_of(self, image: str) -> str | None:
        for name in sample_names(image):
            if (label := self._labels.get(name)) is not None:
                label.used = True
                self.columns.setdefault("label", [label.column])
                if label.text is None:
                    raise Damaged(
                        f"its member {label.member!r} is no class name: expected a short text of one line; "
                        "--label-column none ignores such members"
                    )
                return label.text
            self._wanted.append(hash(name))
        return None


def sample_names(image: str) -> Iterator[str]:
    """The names that a label of this image may have, without suffix, the longest first."""
    start = image.rfind("/") + 1
    dots = [index for index in range(start, len(image)) if image[index] == "."]
    for end in dict.fromkeys((*dots[:-_MAX_DOTS:-1], dots[0])):
        yield image[:end]


def _line(value: object) -> str:
    """A label as text; ValueError if it is more than a number or one line."""
    if isinstance(value, (bool, int)) or value is None:
        return "" if value is None else json.dumps(value)
    if not isinstance(value, str) or len(value.strip().splitlines()) > 1:
        raise ValueError
    return value.strip()
