"""What is found in folders, tables and remote storage, and what is refused."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs, parquet

from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.images.filetypes import IMAGE_SUFFIXES
from tlray.images.listing import Images, Listed, assign_split


def make(root: Path, *names: str) -> str:
    """Create empty files, or a folder for a name that ends in a slash."""
    root.mkdir(exist_ok=True)
    for name in names:
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.touch()
    return str(root)


def change_scans(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Let every os.scandir give what `change` makes of it."""
    scandir = os.scandir

    @contextmanager
    def changed(place: str) -> Iterator[Any]:
        with scandir(place) as entries:
            yield change(entries)

    monkeypatch.setattr(os, "scandir", changed)


def rows(uri: str) -> list[tuple[str, str | None, str | None]]:
    return [(row.path, row.split, row.label) for row in Images.open(uri)]


def paths(uri: str) -> list[str]:
    return [row.path for row in Images.open(uri)]


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as caught:
        list(Images.open(uri))
    message = str(caught.value)
    assert len(message.splitlines()) <= 2, message
    return message


@pytest.fixture
def remote() -> Iterator[str]:
    import fsspec

    memory = fsspec.filesystem("memory")
    yield "memory://listing"
    memory.rm("/listing", recursive=True)


def upload(uri: str, *names: str, data: bytes = b"123") -> None:
    for name in names:
        Folder.open(uri).write(name, data)


# Layouts


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["cats/b.jpg", "cats/2019/may/a.jpg", "dogs/a.jpg", "top.jpg", "__MACOSX2/a.jpg"],
            [
                ("__MACOSX2/a.jpg", None, "__MACOSX2"),
                ("cats/2019/may/a.jpg", None, "cats"),
                ("cats/b.jpg", None, "cats"),
                ("dogs/a.jpg", None, "dogs"),
                ("top.jpg", None, None),
            ],
        ),
        (["b.jpg", "a.png"], [("a.png", None, None), ("b.jpg", None, None)]),
        # What is hidden is no class beside the splits.
        (
            ["train/x/a.jpg", "test/x/a.jpg", ".git/x.jpg", "__MACOSX/x.jpg", "README.md"],
            [("test/x/a.jpg", "test", "x"), ("train/x/a.jpg", "train", "x")],
        ),
        # Without `train` they are classes beside others.
        (
            ["test/a.jpg", "val/x/a.jpg", "cats/a.jpg"],
            [("cats/a.jpg", None, "cats"), ("test/a.jpg", None, "test"), ("val/x/a.jpg", None, "val")],
        ),
    ],
)
def test_what_folders_mean(tmp_path, names, expected):
    assert rows(make(tmp_path, *names)) == expected


@pytest.mark.parametrize("folder", ["train", "val", "valid", "validation", "test", "Train", "VAL"])
def test_split_folders_hold_classes_or_images(tmp_path, folder):
    split = {"val": "validation", "valid": "validation"}.get(folder.lower(), folder.lower())
    uri = make(tmp_path, f"{folder}/cats/2019/a.jpg", f"{folder}/b.jpg", "z.jpg")
    assert rows(uri) == [
        (f"{folder}/b.jpg", split, None),
        (f"{folder}/cats/2019/a.jpg", split, "cats"),
        ("z.jpg", None, None),
    ]


def test_train_beside_other_folders_is_refused(tmp_path):
    uri = make(tmp_path, "train/cats/a.jpg", "test/cats/a.jpg", *(f"class{i}/a.jpg" for i in range(9)))
    with pytest.raises(UserError, match="mixes splits") as caught:
        Images.open(uri)
    assert "['test', 'train'] with 9 other folders ['class0', 'class1'," in str(caught.value)


def test_one_image(tmp_path):
    make(tmp_path, "cats/a.jpg", "cats/b.jpg")
    images = Images.open(str(tmp_path / "cats/a.jpg"))
    assert images.root.path == images.root.uri == str(tmp_path / "cats")
    assert [(row.path, row.split, row.label, row.size) for row in images] == [("a.jpg", None, None, 0)]
    (tmp_path / "link.jpg").symlink_to("nowhere")
    assert paths(str(tmp_path / "link.jpg")) == ["link.jpg"]
    place = os.fsencode(tmp_path) + b"/\xe9.jpg"
    os.close(os.open(place, os.O_CREAT))
    assert paths(os.fsdecode(place)) == ["\\xe9.jpg"]


def test_relative_root(tmp_path, monkeypatch):
    make(tmp_path, "pictures/cats/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert rows("pictures/") == [("cats/a.jpg", None, "cats")]
    assert rows(f"file://{tmp_path}/pictures") == [("cats/a.jpg", None, "cats")]


# Which files


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_suffixes_in_any_case(tmp_path, suffix):
    uri = make(tmp_path, f"a{suffix}", f"b{suffix.upper()}", f"c{suffix}.txt", f"d{suffix[1:]}")
    images = Images.open(uri)
    assert [row.path for row in images] == [f"a{suffix}", f"b{suffix.upper()}"]
    assert images.passed_over == 2


def test_the_suffixes_are_those_promised():
    promised = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm pnm avif"
    assert {f".{suffix}" for suffix in promised.split()} == set(IMAGE_SUFFIXES)


def test_others_are_counted_again_each_time_and_hidden_ones_never(tmp_path):
    uri = make(
        tmp_path, "a.jpg", "cats/notes.txt", "Thumbs.db", ".DS_Store", "cats/._a.jpg", "cats/__MACOSX/b.jpg"
    )
    images = Images.open(uri)
    for _ in range(2):
        assert [row.path for row in images] == ["a.jpg"]
        assert images.passed_over == 2


def test_size_and_time_are_those_of_the_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "a.jpg", (0, 1_700_000_000))
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    moment = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert list(Images.open(str(tmp_path))) == [
        Listed("a.jpg", None, None, 5, moment),
        Listed("b.jpg", None, None, 5, moment),
    ]


def test_whatever_has_the_name_of_an_image_is_listed(tmp_path):
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "through.jpg").symlink_to("file/below")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        images = Images.open(str(tmp_path))
        found = {row.path: row.size for row in images}
    assert found == {
        "dangling.jpg": None,
        "through.jpg": None,
        "itself.jpg": None,
        "device.jpg": 0,
        "fifo.jpg": 0,
        "socket.jpg": 0,
    }
    assert images.passed_over == 1


def test_links_to_nowhere_without_the_name_of_an_image_are_other_files(tmp_path):
    make(tmp_path, "a.jpg", "file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "through").symlink_to("file/below")
    (tmp_path / "itself").symlink_to("itself")
    images = Images.open(str(tmp_path))
    assert [row.path for row in images] == ["a.jpg"]
    assert images.passed_over == 4


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    assert rows(make(tmp_path, "x.jpg/a.jpg", "empty.jpg/")) == [("x.jpg/a.jpg", None, "x.jpg")]
    assert rows(str(tmp_path / "x.jpg")) == [("a.jpg", None, None)]


def test_a_file_dated_beyond_python(tmp_path, monkeypatch):
    uri = make(tmp_path, "a.jpg")
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda place: os.stat_result((*stat(place)[:8], 1e15, 0)))
    assert list(Images.open(uri)) == [Listed("a.jpg", None, None, None, None)]


# Names


def test_odd_names_are_kept(tmp_path):
    # The last two are the same letter, composed and not.
    names = [
        "new\nline/a b.jpg",
        "Ünïcödé/猫 🐈.jpg",
        "tab\t/\\x.jpg",
        "per%20cent/#?.jpg",
        "-rf/*.jpg",
        "\u00e9.jpg",
        "e\u0301.jpg",
    ]
    uri = make(tmp_path, *names)
    assert paths(uri) == sorted(names)
    assert {row[2] for row in rows(uri)} == {None, *(name.split("/")[0] for name in names if "/" in name)}


def test_names_that_are_not_utf8_become_text(tmp_path):
    root = os.fsencode(tmp_path)
    os.mkdir(root + b"/caf\xe9")
    (tmp_path / "z.jpg").touch()
    for name in (b"/caf\xe9/\xff.jpg", b"/caf\xe9/ok.jpg"):
        with open(root + name, "wb") as file:
            file.write(b"123")
    found = list(Images.open(str(tmp_path)))
    assert [(row.path, row.label, row.size) for row in found] == [
        ("caf\\xe9/\\xff.jpg", "caf\\xe9", 3),
        ("caf\\xe9/ok.jpg", "caf\\xe9", 3),
        ("z.jpg", None, 0),
    ]
    pa.array([row.path for row in found]).validate(full=True)


def test_a_root_that_is_not_utf8_is_refused(tmp_path):
    place = os.fsencode(tmp_path) + b"/\xe9"
    os.mkdir(place)
    assert "not UTF-8" in refusal(os.fsdecode(place))


# Order


def test_order_is_that_of_the_paths_whatever_the_order_of_creation(tmp_path):
    names = [
        "a/b.jpg",
        "a.jpg",
        "a-b/c.jpg",
        "a0.jpg",
        "a/b/c.jpg",
        "a/b-c.jpg",
        "B.jpg",
        "b/1.jpg",
        "é/2.jpg",
    ]
    for seed in range(4):
        random.Random(seed).shuffle(names)
        assert paths(make(tmp_path / str(seed), *names)) == sorted(names)


def test_listing_streams_one_folder_at_a_time(tmp_path, monkeypatch):
    uri = make(tmp_path, *(f"{folder}/a.jpg" for folder in "abcdefgh"))
    images = Images.open(uri)
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: scanned.append(place) or scandir(place))
    rows = iter(images)
    assert scanned == []
    assert next(rows).path == "a/a.jpg"
    assert len(scanned) == 2  # the root and its first folder


# Links between folders


def test_links_to_folders_are_followed(tmp_path):
    make(tmp_path, "elsewhere/deep/a.jpg", "images/cats/b.jpg")
    (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere")
    assert rows(str(tmp_path / "images")) == [
        ("cats/b.jpg", None, "cats"),
        ("linked/deep/a.jpg", None, "linked"),
    ]


def test_a_linked_root_and_linked_splits(tmp_path):
    make(tmp_path, "store/cats/a.jpg", "images/test/cats/b.jpg")
    (tmp_path / "images/train").symlink_to(tmp_path / "store")
    (tmp_path / "root").symlink_to("images")
    assert rows(str(tmp_path / "root")) == [
        ("test/cats/b.jpg", "test", "cats"),
        ("train/cats/a.jpg", "train", "cats"),
    ]


def test_a_link_up_below_a_linked_root(tmp_path):
    make(tmp_path, "deep/root/a.jpg", "deep/b.jpg")
    (tmp_path / "deep/root/up").symlink_to("..")
    (tmp_path / "alias").symlink_to("deep/root")
    assert paths(str(tmp_path / "alias")) == ["a.jpg"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
def test_a_link_to_a_folder_it_lies_in_is_not_entered(tmp_path, target):
    make(tmp_path, "root/cats/deep/a.jpg", "root/cats/a.jpg")
    (tmp_path / "root/cats/deep/loop").symlink_to(target)
    images = Images.open(str(tmp_path / "root"))
    assert [row.path for row in images] == ["cats/a.jpg", "cats/deep/a.jpg"]
    assert images.passed_over == 0


def test_a_loop_at_the_top_is_no_class_beside_the_splits(tmp_path):
    uri = make(tmp_path, "train/cats/a.jpg")
    (tmp_path / "loop.jpg").symlink_to(".")
    assert rows(uri) == [("train/cats/a.jpg", "train", "cats")]


def test_two_folders_that_link_to_each_other(tmp_path):
    uri = make(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    assert paths(uri) == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]


def test_a_link_out_and_a_way_back_in(tmp_path):
    make(tmp_path, "root/a.jpg", "outside/b.jpg")
    (tmp_path / "root/out").symlink_to("../outside")
    (tmp_path / "outside/in").symlink_to("../root")
    (tmp_path / "alias").symlink_to("root")
    assert paths(str(tmp_path / "alias")) == ["a.jpg", "out/b.jpg"]


def test_a_tree_deeper_than_the_stack_of_python(tmp_path):
    depth = sys.getrecursionlimit() + 100
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("a.jpg", os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        assert paths(str(tmp_path)) == ["d/" * depth + "a.jpg"]
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


# What is refused


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    uri = make(tmp_path, "cats/a.jpg", "secret/b.jpg")
    scandir = os.scandir

    def guarded(place):
        if "secret" in place:
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    images = iter(Images.open(uri))
    assert next(images).path == "cats/a.jpg"
    with pytest.raises(UserError, match=r"cannot list the folder '.*secret/': Permission denied"):
        next(images)


def test_a_path_too_long_for_the_system_is_not_dropped(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("a.jpg", os.O_CREAT, dir_fd=here))
    os.close(here)
    (tmp_path / "0.jpg").touch()
    try:
        assert "cannot list" in refusal(str(tmp_path))
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / ("d" * 250))], check=True)


class Locked:
    """An entry whose target may not be looked at."""

    def __init__(self, entry):
        self.name, self.path = entry.name, entry.path

    def is_dir(self):
        raise PermissionError(13, "Permission denied", self.path)


@pytest.mark.parametrize(("name", "listed"), [("x.jpg", True), ("x", False)])
def test_a_link_that_may_not_be_followed_could_be_a_folder(tmp_path, monkeypatch, name, listed):
    uri = make(tmp_path, name, "z.jpg")
    change_scans(
        monkeypatch, lambda entries: [Locked(entry) if entry.name == name else entry for entry in entries]
    )
    if listed:
        assert paths(uri) == ["x.jpg", "z.jpg"]
    else:
        assert "Permission denied" in refusal(uri)


def test_what_is_not_there(tmp_path):
    (tmp_path / "t.csv").symlink_to("nowhere")
    assert "cannot read the table" in refusal(str(tmp_path / "t.csv"))
    assert "cannot read the table" in refusal(write_csv(tmp_path, "hello", "none.parquet"))
    for name in ("nothing", "nothing/a.jpg", "nothing.csv"):
        message = refusal(str(tmp_path / name))
        assert "does not exist" in message
        assert name in message


def test_a_file_that_is_neither_image_nor_table(tmp_path):
    make(tmp_path, "a.txt")
    with pytest.raises(UserError, match=r"a\.txt' has no extension of .* \.parquet or \.csv table"):
        Images.open(str(tmp_path / "a.txt"))


def test_no_image_says_what_was_there(tmp_path):
    uri = make(tmp_path, "a.txt", "b.md", "c/d.txt", "c/LICENSE", ".hidden.jpg")
    images = Images.open(uri)
    with pytest.raises(
        UserError, match=r"found 4 other files, extensions \(none\), \.md, \.txt;\nexpected \.jpg"
    ):
        list(images)
    assert images.passed_over == 4
    assert "found 0 other files;\n" in refusal(make(tmp_path / "empty", "train/cats/"))


# Tables


def write(tmp_path: Path, **columns) -> str:
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    return str(tmp_path / "t.parquet")


def write_csv(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> str:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(tmp_path / name)


def test_a_table_is_listed_as_it_stands(tmp_path):
    given = ["b.jpg", "a.jpg", "/abs/c.jpg", "s3://bucket/d.jpg", "e.tfrecord"]
    splits = ["val", "Valid", "TEST", None, ""]
    uri = write(tmp_path, path=given, label=["x", None, "", "y", "x"], split=splits, size=[[3]] * 5)
    images = Images.open(uri)
    assert images.root.path == str(tmp_path)
    assert list(images) == [
        Listed("b.jpg", "validation", "x", None, None),
        Listed("a.jpg", "validation", None, None, None),
        Listed("/abs/c.jpg", "test", None, None, None),
        Listed("s3://bucket/d.jpg", None, "y", None, None),
        Listed("e.tfrecord", None, "x", None, None),
    ]
    assert len(list(images)) == 5
    assert images.passed_over == 0


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([7, None]), ["7", None]),
        (pa.array([1.0, 2.5]), ["1", "2.5"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["x", None]).dictionary_encode(), ["x", None]),
        (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_labels_of_parquet_become_text(tmp_path, labels, expected):
    uri = write(tmp_path, path=["a.jpg", "b.jpg"], label=labels)
    assert [row.label for row in Images.open(uri)] == expected


def test_csv_keeps_what_is_written(tmp_path):
    uri = write_csv(
        tmp_path,
        '\ufeffpath,extra,label,split\n001,x,007,train\n002,,NA,\n"new\nline, .jpg",1,,val\n',
        "T.CSV",
    )
    assert rows(uri) == [
        ("001", "train", "007"),
        ("002", None, "NA"),
        ("new\nline, .jpg", "validation", None),
    ]


def test_a_csv_whose_other_columns_change_their_kind_late(tmp_path):
    lines = "".join(f"{i:040}.jpg,{i if i < 60_000 else 'text'}\n" for i in range(61_000))
    uri = write_csv(tmp_path, "path,n\n" + lines)
    assert paths(uri) == [f"{i:040}.jpg" for i in range(61_000)]


def test_newlines_in_a_csv_of_several_blocks(tmp_path):
    given = [f"{i}\n{'x' * 100}\n.jpg" for i in range(12_000)]
    assert paths(write_csv(tmp_path, "path\n" + "".join(f'"{path}"\n' for path in given))) == given


def test_a_parquet_file_of_many_row_groups_keeps_its_order(tmp_path):
    given = [f"{i * 7919 % 5000}.jpg" for i in range(5000)]
    parquet.write_table(pa.table({"path": given}), tmp_path / "t.parquet", row_group_size=100)
    assert paths(str(tmp_path / "t.parquet")) == given


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,label\na.jpg,x\n", "needs a column 'path'; its columns are ['file', 'label']"),
        ("path;label\na.jpg;x\n", "needs a column 'path'; its columns are ['path;label']"),
        ("path,path\na.jpg,b.jpg\n", "multiple columns named path"),
        ("path,label\n,x\n", "row 1 of the table"),
        ("path\na.jpg\nb.jpg\na.jpg\n", "has the path 'a.jpg' twice"),
        ("path,split\na.jpg,train\nb.jpg,training\n", "row 2 of the table"),
        ("path,split\na.jpg,training\n", "split 'training': expected train, validation, test, val, valid"),
        ("path,label\n", "has no rows"),
        ("", "Empty CSV"),
        ("path,label\na.jpg\n", "Expected 2 columns, got 1"),
        ('path\n"a\nb","c"\n', "Expected 1 columns, got 2"),
        (b"path,label\ncaf\xe9.jpg,x\n", "invalid UTF8"),
        (b"path,caf\xe9\na.jpg,x\n", "cannot read the table"),
    ],
)
def test_csv_tables_that_are_refused_at_once(tmp_path, text, expected):
    uri = write_csv(tmp_path, text)
    with pytest.raises(UserError) as caught:
        Images.open(uri)
    assert expected in str(caught.value)
    assert uri in str(caught.value)
    assert "dataset" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": ["a.jpg"]}, "needs a column 'path'; its columns are ['image']"),
        ({"path": ["a.jpg", None]}, "row 2 of the table"),
        ({"path": ["a.jpg", ""]}, "row 2 of the table"),
        ({"path": [*"abcda"]}, "has the path 'a' twice"),
        ({"path": ["a.jpg"], "label": [[1]]}, "cannot read the table"),
        ({"path": pa.array([], pa.string())}, "has no rows"),
    ],
)
def test_parquet_tables_that_are_refused_at_once(tmp_path, columns, expected):
    with pytest.raises(UserError) as caught:
        Images.open(write(tmp_path, **columns))
    assert expected in str(caught.value)


def test_a_table_in_a_folder_with_an_odd_name(tmp_path):
    make(tmp_path, "a?b#c%20 d\\é/")
    uri = write_csv(tmp_path / "a?b#c%20 d\\é", "path\na.jpg\n")
    assert paths(uri) == ["a.jpg"]


def test_paths_with_the_same_hash_are_not_the_same_path(tmp_path, monkeypatch):
    uri = write(tmp_path, path=["a.jpg", "b.jpg", "c.jpg"])
    monkeypatch.setattr("tlray.images.archives.base.hash", lambda _: 1, raising=False)
    assert paths(uri) == ["a.jpg", "b.jpg", "c.jpg"]


# Remote storage


def test_remote_folder_with_splits(remote):
    names = ["val/cats/c.jpg", "top.png", "train/cats/2019/a.jpg", "train/b.JPG", "notes.txt", ".x/y.jpg"]
    upload(remote, *names)
    images = Images.open(remote)
    assert [(row.path, row.split, row.label, row.size) for row in images] == [
        ("top.png", None, None, 3),
        ("train/b.JPG", "train", None, 3),
        ("train/cats/2019/a.jpg", "train", "cats", 3),
        ("val/cats/c.jpg", "validation", "cats", 3),
    ]
    assert images.passed_over == 1


def test_remote_image_table_and_nothing(remote):
    upload(remote, "cats/a.jpg", "readme.txt")
    upload(remote, "t.csv", data=b"path,label\ncats/a.jpg,007\n")
    one = Images.open(f"{remote}/cats/a.jpg")
    assert [(row.path, row.label, row.size) for row in one] == [("a.jpg", None, 3)]
    assert Folder.open(one.root.uri).read("a.jpg") == b"123"
    table = Images.open(f"{remote}/t.csv")
    assert [(row.path, row.label) for row in table] == [("cats/a.jpg", "007")]
    assert table.root.read("cats/a.jpg") == b"123"
    assert "does not exist" in refusal(f"{remote}/cat")
    assert "no extension" in refusal(f"{remote}/readme.txt")


def test_remote_times_and_sub_trees(tmp_path, monkeypatch):
    make(tmp_path, "bucket/cats/a.jpg", "bucket/train.jpg/b.jpg")
    os.utime(tmp_path / "bucket/cats/a.jpg", (0, 1_700_000_000))
    tree = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(Folder, "open", lambda uri: Folder(tree, uri, f"tree://{uri}"))
    found = list(Images.open("bucket"))
    assert found[0] == Listed("cats/a.jpg", None, "cats", 0, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
    assert [row.path for row in found] == ["cats/a.jpg", "train.jpg/b.jpg"]


class Unreachable(fs.FileSystemHandler):
    """Storage that fails; the folder itself is there if `seen`."""

    def __init__(self, seen: bool) -> None:
        self.seen = seen

    def get_type_name(self):
        return "unreachable"

    def get_file_info(self, paths):
        if not self.seen:
            raise OSError("no credentials")
        return [fs.FileInfo(path, fs.FileType.Directory) for path in paths]

    def get_file_info_selector(self, selector):
        raise OSError(f"no access to {selector.base_dir}")

    def _unused(self, *_):
        raise NotImplementedError

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = (
        _unused
    )
    move = normalize_path = open_append_stream = open_input_file = open_input_stream = open_output_stream = (
        _unused
    )


Unreachable.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("seen", "expected"), [(False, "cannot reach 'x://y': no credentials"), (True, "'y/': no access to y;")]
)
def test_remote_storage_that_fails(monkeypatch, seen, expected):
    filesystem = fs.PyFileSystem(Unreachable(seen))
    monkeypatch.setattr(Folder, "open", lambda uri: Folder(filesystem, "y", uri))
    assert expected in refusal("x://y")


# Splits


def test_a_split_never_changes():
    train = [name for name in "abcdefghijklmnop" if assign_split(f"{name}.jpg", 0.5, 7) == "train"]
    assert train == [*"afghijnop"]
    assert assign_split("Ünïcödé/猫.jpg", 0.5, 0) == "train"


def test_a_split_depends_on_seed_and_path():
    names = [f"{i}.jpg" for i in range(200)]
    by_seed = {tuple(assign_split(name, 0.5, seed) for name in names) for seed in range(5)}
    assert len(by_seed) == 5
    # Seed and path are kept apart: "1:2.jpg" of seed 0 is not "2.jpg" of seed 1.
    one, other = (
        [assign_split(f"{i}{path}", 0.5, seed) for i in range(64)]
        for path, seed in (("1:2.jpg", 0), ("2.jpg", 1))
    )
    assert one != other


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.75, 1.0])
def test_a_split_has_about_its_fraction(fraction):
    names = [f"class/{i}.jpg" for i in range(4000)]
    share = sum(assign_split(name, fraction, 0) == "train" for name in names) / len(names)
    assert share == pytest.approx(fraction, abs=0.03 if 0 < fraction < 1 else 0)


def test_a_larger_fraction_only_adds_to_train():
    names = [f"{i}.jpg" for i in range(300)]
    small, large = ({n for n in names if assign_split(n, f, 3) == "train"} for f in (0.3, 0.6))
    assert small < large


# Weight of the import


def test_listing_folders_needs_neither_ray_nor_tensorflow(tmp_path):
    make(tmp_path, "a.jpg")
    code = (
        "import sys; from tlray.images.listing import Images; list(Images.open(sys.argv[1]));"
        "print({'ray', 'tensorflow', 'keras', 'fsspec', 'pandas', 'pyarrow.dataset'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
