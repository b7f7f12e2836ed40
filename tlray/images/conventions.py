"""The names that have a meaning: those of splits, of columns of tables, and of folders that systems make."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tlray.core.errors import UserError

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
"""The names of each split; `set`, `data` and the like may follow them, as in `test_set`."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file_path", "file_name", "file", "image_path", "image_file", "image_name", "image",
             "image_id", "img_path", "img_name", "img"),
    "label": ("label", "label_name", "class", "classes", "class_name", "class_label", "category",
              "categories", "category_name", "target", "cls", "species", "y"),
    "split": ("split", "set", "subset", "data_set", "partition"),
}  # fmt: skip
"""The names of columns, or their plurals. If a table has several, the first in this order is taken."""
WRAPPERS = ("data", "default")
"""Folders of repositories of Hugging Face that mean nothing if they contain all others."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files with the labels of the images beside them, by their column `file_name`."""
_JUNK = {
    "__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "system volume information",
    "lost+found", "__pycache__",
}  # fmt: skip
"""Folders that systems make, in lower case: thumbnails of network drives, recycle bins, caches."""


def _key(name: str) -> str:
    """A name without what people write differently: upper case, `-`, `_`, white space, a plural's s."""
    return re.sub(r"[-_\s]+|s\s*$", "", name.lower())


_SPLITS = {_key(word): split for split, words in SPLITS.items() for word in words}
_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnNames:
    """The columns that the user names with `--path-column` and so on; None leaves the choice to tlray."""

    path: str | None = None
    label: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, settings: Any) -> ColumnNames:
        """The columns that the settings of a job name."""
        return cls(settings.path_column, settings.label_column, settings.split_column)

    def find(self, schema: pa.Schema, where: str) -> dict[str, list[str]]:
        """The columns that may contain "path", "label" and "split", the one to read first; none if none may.

        Raises:
            UserError: the user names a column that `where`, the file with this schema, does not have.
        """
        columns: dict[str, list[str]] = {}
        for content, (usual, *_) in COLUMNS.items():
            if (given := getattr(self, content)) is None:
                names = [f.name for f in schema if f.name == usual or not pa.types.is_nested(f.type)]
                columns[content] = likely_columns(content, names)
                continue
            columns[content] = [name for name in schema.names if given in (name, name.strip())]
            if not columns[content] and given != "none":
                raise UserError(
                    f"--{content}-column {given}: {where} has only the columns {', '.join(schema.names)}"
                )
        return {content: names for content, names in columns.items() if names}

    def check_used(self, columns: Mapping[str, str], where: str) -> None:
        """Raise UserError if no file has a column that the user names; `columns` are those that were read."""
        for content in COLUMNS:
            if (given := getattr(self, content)) not in (None, "none") and content not in columns:
                raise UserError(
                    f"--{content}-column {given}: there is no table or archive with such a column in "
                    f"{where}: leave out the option, or give the table itself"
                )


def likely_columns(content: str, names: Sequence[str]) -> list[str]:
    """Those of the names that a column of "path", "label" or "split" usually has, the likeliest first."""
    words = [_key(word) for word in COLUMNS[content]]
    matches = [name for name in names if _key(name) in words]
    return sorted(matches, key=lambda name: (words.index(_key(name)), name not in COLUMNS[content]))


def doubts(columns: Mapping[str, list[str]], before: Mapping[str, str]) -> Iterator[str]:
    """A warning for each content that another column may have too; `before` are those of other files."""
    for content, (column, *others) in columns.items():
        others += [name for name in (before.get(content, column),) if name != column]
        if others and content != "path":
            yield (
                f"the {content}s are read from the column {column}, but {', '.join(others)} may contain them "
                f"too: give --{content}-column {column}, or another"
            )


def split_named(name: str) -> str | None:
    """The split that has this name; None if no split has it."""
    key = _key(name)
    return _SPLITS.get(key) or _SPLITS.get(re.sub("(set|data|dataset|split|image|img)$", "", key))


def is_file_name(column: str) -> bool:
    """Whether a column has the name by which `METADATA` names its images."""
    return _key(column) == "filename"


def split_in(name: str) -> str | None:
    """The split in an archive's name, e.g. `train-00000-of-00005.parquet` or `imagenet-val-000001.tar`."""
    match = _IN_NAME.search(name)
    return _SPLITS[match[1].lower()] if match else None


def name_classes(names: Sequence[str]) -> bool:
    """Whether archives of these names, without suffix, are a class each: no splits, no numbered parts."""
    matches = (re.fullmatch(r"[\W\d_]*(\D*?)[\W\d_]*", name) for name in names)
    words = {match[1].lower() for match in matches if match}
    # The ids of ImageNet differ only in their number, as the names of shards do.
    differ = len(words - {""}) == len(names) or all(re.fullmatch(r"n\d{8}", name) for name in names)
    return len(names) > 1 and differ and not any(map(split_in, names))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or made by a system, by its own name without those above it."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _JUNK
