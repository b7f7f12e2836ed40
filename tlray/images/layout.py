"""What the folders above an image mean: its split, its label, or nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from tlray.core.storage import Folder
from tlray.images.conventions import WRAPPERS, split_named
from tlray.images.walk import Entry, list_folder


@dataclass
class Layout:
    """The meaning of the folders below a root, or in a tar file."""

    has_splits: bool = False
    """Whether the folders at the top are splits; otherwise they are classes."""
    prefix: str = ""
    """The folders that only contain all others, as `data/` does in a repository of Hugging Face."""
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, names: Sequence[str]) -> Layout:
        """The layout with these folders at the top. They are splits if all of them have names of splits."""
        splits = [name for name in names if split_named(name)]
        classes = [name for name in names if name not in splits]
        layout = cls(bool(splits) and not classes)
        if splits and classes:
            layout.warnings.append(
                f"{', '.join(splits)}: names of splits, but taken as classes, because other folders "
                f"({', '.join(classes[:3])}) lie beside them; if they are splits, move the other folders away"
            )
        elif len(set(map(split_named, splits))) < len(splits):
            layout.warnings.append(
                f"of the folders {', '.join(splits)}, some are read as the same split, e.g. dev and val as "
                "validation: rename one if that is not meant"
            )
        return layout

    @classmethod
    def open(cls, root: Folder, start: Entry) -> Layout:
        """The layout of a folder; this opens the folders at its top."""
        prefix, names = "", _names(root, start)
        while len(names) == 1 and names[0].lower() in WRAPPERS:
            prefix += f"{names[0]}/"
            names = _names(root, Entry(prefix))
        layout = cls.of(names)
        layout.prefix = prefix
        if len(names) == 1 and not layout.has_splits:
            top = f"{prefix}{names[0]}"
            if inner := _names(root, Entry(f"{top}/")):
                layout.warnings.append(
                    f"all images lie in the folder {top!r}, which is taken as their class: if the folders in "
                    f"it ({', '.join(inner[:3])}) are the splits or classes, give {root.uri}/{top}"
                )
        return layout

    def meaning(self, path: str) -> tuple[str | None, str | None]:
        """The split and the label that the folders above a file name."""
        folders = folders_above(path.removeprefix(self.prefix))
        split = split_named(folders.pop(0)) if self.has_splits and folders else None
        if split is None and not self.warnings and (name := next(filter(split_named, folders[:2]), None)):
            self.warnings.append(
                f"the images in {'/'.join(folders[:2])} have the class {folders[0]!r} and no split: if "
                f"{name!r} is a split, put it at the top beside other splits, or give the folder above it"
            )
        return split, folders[0] if folders else None

    def folders(self, root: Folder) -> list[Folder]:
        """The root, and the folders of splits and classes that are links to other places."""
        folders, level = [root], [root.path]
        for _ in range(self.prefix.count("/") + self.has_splits + 1 if root.is_local else 0):
            entries = [entry for path in level if os.access(path, os.R_OK) for entry in os.scandir(path)]
            folders += [Folder.open(entry.path) for entry in entries if entry.is_symlink() and entry.is_dir()]
            level = [entry.path for entry in entries if entry.is_dir()]
        return folders


def folders_above(path: str) -> list[str]:
    """The names of the folders above a file, without those that lead nowhere."""
    return [part for part in path.split("/")[:-1] if part not in ("", ".", "..")]


def _names(root: Folder, folder: Entry) -> list[str]:
    names = [entry.path for entry in list_folder(root, folder) if entry.is_folder]
    return [name.removesuffix("/").rpartition("/")[2] for name in names]
