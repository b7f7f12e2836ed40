"""What the folders above an image mean: its split, its label, or nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from tlray.core.storage import Folder
from tlray.images.conventions import WRAPPERS, split_named
from tlray.images.walk import Entry, list_folder

_DEPTH = 5
"""Folders in each other that are opened to find out where the classes are."""


@dataclass
class Layout:
    """The meaning of the folders below a root."""

    prefix: str = ""
    """The folders that only contain all others, as `data/` does in a repository of Hugging Face."""
    has_splits: bool = False
    """Whether the folders below the prefix are splits; otherwise they are classes."""
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, root: Folder, start: Entry) -> Layout:
        """Open the folders at the top. They are splits if all of them have names of splits."""
        layout, names = cls(), _folders(root, start)
        while len(names) == 1 and names[0].lower() in WRAPPERS:
            layout.prefix += f"{names[0]}/"
            names = _folders(root, Entry(layout.prefix))
        splits = [name for name in names if split_named(name)]
        classes = [name for name in names if name not in splits]
        layout.has_splits = bool(splits) and not classes
        if splits and classes:
            layout.warnings.append(
                f"{', '.join(splits)}: names of splits, but taken as classes, because other folders "
                f"({', '.join(classes[:3])}) lie beside them; if they are splits, move the other folders away"
            )
        elif len(classes) == 1:
            layout._look_inside(root, f"{layout.prefix}{classes[0]}")
        elif len(set(map(split_named, splits))) < len(splits):
            layout.warnings.append(
                f"of the folders {', '.join(splits)}, some are read as the same split, e.g. dev and val as "
                "validation: rename one if that is not meant"
            )
        return layout

    def _look_inside(self, root: Folder, top: str) -> None:
        """Warn if the only folder seems to contain the folders of the splits or classes."""
        inner = top
        for _ in range(_DEPTH):
            names = _folders(root, Entry(f"{inner}/"))
            if len(names) != 1 or split_named(names[0]):
                break
            inner = f"{inner}/{names[0]}"
        if names:
            self.warnings.append(
                f"all images lie in the folder {top!r}, which is taken as their class: if the folders in it "
                f"({', '.join(names[:3])}) are the splits or classes, give {root.uri}/{inner}"
            )

    def meaning(self, path: str) -> tuple[str | None, str | None]:
        """The split and the label that the folders of a file name."""
        folders = path.removeprefix(self.prefix).split("/")[:-1]
        split = split_named(folders.pop(0)) if self.has_splits and folders else None
        return split, folders[0] if folders else None

    def folders(self, root: Folder) -> list[Folder]:
        """The root, and the folders of splits and classes that are links to other places."""
        folders, level = [root], [root.path]
        for _ in range(self.prefix.count("/") + self.has_splits + 1 if root.is_local else 0):
            entries = [entry for path in level if os.access(path, os.R_OK) for entry in os.scandir(path)]
            folders += [Folder.open(entry.path) for entry in entries if entry.is_symlink() and entry.is_dir()]
            level = [entry.path for entry in entries if entry.is_dir()]
        return folders


def _folders(root: Folder, folder: Entry) -> list[str]:
    names = [entry.path for entry in list_folder(root, folder) if entry.is_folder]
    return [name.removesuffix("/").rpartition("/")[2] for name in names]
