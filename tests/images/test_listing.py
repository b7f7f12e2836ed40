"""What is found in folders, tables and remote storage, and what is refused."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from pyarrow import fs

from tests.support.listings import paths, refusal, rows
from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.images.filetypes import IMAGE_SUFFIXES
from tlray.images.listing import Images, Listed, assign_split

MOMENT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def make(root: Path, *names: str) -> str:
    """Create empty files, or a folder for a name that ends in a slash."""
    root.mkdir(exist_ok=True)
    for name in names:
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.touch()
    return str(root)


@contextmanager
def nested(root: Path, name: str, depth: int) -> Iterator[None]:
    """Folders of this name in each other, with an image in the last, whose path the system may not take."""
    folder = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("a.jpg", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    yield
    subprocess.run(["rm", "-r", str(root / name)], check=True)


@pytest.fixture
def remote() -> Iterator[str]:
    yield "memory://listing"
    fsspec.filesystem("memory").rm("/listing", recursive=True)


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


@pytest.mark.parametrize(
    ("folders", "warning"),
    [
        (
            ["bus", "car", "train"],
            "train: names of splits, but taken as classes, because other folders (b",
        ),
        (["Test", "annotations", "train"], "Test, train: names of splits, but taken as classes"),
        ([*"abcd", "val"], "other folders (a, b, c) lie beside"),
        (["test", "train"], None),
        (["bus", "car"], None),
    ],
)
def test_splits_beside_other_folders_are_classes_and_a_warning_says_so(tmp_path, folders, warning):
    images = Images.open(make(tmp_path, *(f"{folder}/{folder}/a.jpg" for folder in folders)))
    assert [image.label for image in images] == folders
    assert [warning in line for line in images.warnings] == ([True] if warning else [])


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


def test_the_promised_suffixes_in_any_case(tmp_path):
    promised = ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .avif"
    assert sorted(IMAGE_SUFFIXES) == sorted(promised.split(" "))
    names = [f"a{case}" for suffix in IMAGE_SUFFIXES for case in (suffix, suffix.upper())]
    images = Images.open(make(tmp_path, *names, "c.jpg.txt", "djpg"))
    assert [row.path for row in images] == sorted(names)
    assert images.passed_over.total() == 2


def test_others_are_counted_again_each_time_and_hidden_ones_apart(tmp_path):
    uri = make(
        tmp_path, "a.jpg", "cats/notes.txt", "Thumbs.db", ".DS_Store", "cats/._a.jpg", "cats/__MACOSX/b.jpg"
    )
    images = Images.open(uri)
    for _ in range(2):
        assert [row.path for row in images] == ["a.jpg"]
        assert (images.passed_over.total(), images.hidden) == (2, 3)


def test_size_and_time_are_those_of_the_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "a.jpg", (0, 1_700_000_000))
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert list(Images.open(str(tmp_path))) == [
        Listed(name, None, None, 5, MOMENT) for name in ("a.jpg", "b.jpg")
    ]


def test_whatever_has_the_name_of_an_image_is_listed_and_other_links_to_nowhere_are_other_files(tmp_path):
    (tmp_path / "file").touch()
    for suffix in (".jpg", ""):
        links = {
            f"dangling{suffix}": "nowhere",
            f"through{suffix}": "file/below",
            f"self{suffix}": f"self{suffix}",
        }
        for name, target in links.items():
            (tmp_path / name).symlink_to(target)
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        images = Images.open(str(tmp_path))
        sizes = {row.path: row.size for row in images}
    assert sizes == {
        **dict.fromkeys(["dangling.jpg", "through.jpg", "self.jpg"]),
        **dict.fromkeys(["device.jpg", "fifo.jpg", "socket.jpg"], 0),
    }
    assert images.passed_over.total() == 4


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
    names = ["new\nline/a b.jpg", "Ünïcödé/猫 🐈.jpg", "tab\t/\\x.jpg", "per%20cent/#?.jpg", "-rf/*.jpg"]
    names += ["\u00e9.jpg", "e\u0301.jpg"]
    uri = make(tmp_path, *names)
    assert paths(uri) == sorted(names)
    assert {row[2] for row in rows(uri)} == {None, *(name.split("/")[0] for name in names if "/" in name)}


def test_names_that_are_not_utf8_become_text(tmp_path):
    root = os.fsencode(tmp_path)
    os.mkdir(root + b"/caf\xe9")
    (tmp_path / "z.jpg").touch()
    Path(os.fsdecode(root + b"/caf\xe9/\xff.jpg")).write_bytes(b"123")
    listed = [(row.path, row.label, row.size) for row in Images.open(str(tmp_path))]
    assert listed == [("caf\\xe9/\\xff.jpg", "caf\\xe9", 3), ("z.jpg", None, 0)]
    assert "not UTF-8" in refusal(os.fsdecode(root + b"/caf\xe9"))


# Order


def test_order_is_that_of_the_paths_whatever_the_order_of_creation(tmp_path):
    names = ["a/b.jpg", "a.jpg", "a-b/c.jpg", "a0.jpg", "a/b/c.jpg", "a/b-c.jpg"]
    names += ["B.jpg", "b/1.jpg", "é/2.jpg"]
    for seed in range(4):
        random.Random(seed).shuffle(names)
        assert paths(make(tmp_path / str(seed), *names)) == sorted(names)


def test_listing_streams_one_folder_at_a_time(tmp_path, monkeypatch):
    uri = make(tmp_path, *(f"{folder}/a.jpg" for folder in "abcdefgh"))
    images = Images.open(uri)
    scandir = Mock(wraps=os.scandir)
    monkeypatch.setattr(os, "scandir", scandir)
    listing = iter(images)
    scandir.assert_not_called()
    assert next(listing).path == "a/a.jpg"
    assert scandir.call_count == 2  # The root and its first folder.


# Links between folders


@pytest.mark.parametrize(
    ("names", "links", "root", "expected"),
    [
        (["images/b.jpg", "out/deep/a.jpg"], {"images/in": "../out"}, "images", ["b.jpg", "in/deep/a.jpg"]),
        # Folders that link to each other, a link to a folder above a linked root, and a way back in.
        (
            ["a/1.jpg", "b/2.jpg"],
            {"a/b": "../b", "b/a": "../a"},
            "",
            ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"],
        ),
        (["deep/root/a.jpg", "deep/b.jpg"], {"deep/root/up": "..", "alias": "deep/root"}, "alias", ["a.jpg"]),
        (
            ["root/a.jpg", "outside/b.jpg"],
            {"root/out": "../outside", "outside/in": "../root", "alias": "root"},
            "alias",
            ["a.jpg", "out/b.jpg"],
        ),
    ],
)
def test_links_to_folders_are_followed_but_not_to_those_they_lie_in(tmp_path, names, links, root, expected):
    make(tmp_path, *names)
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    assert paths(str(tmp_path / root)) == expected


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
def test_a_link_to_a_folder_it_lies_in_is_no_other_file(tmp_path, target):
    make(tmp_path, "root/cats/deep/a.jpg", "root/cats/a.jpg")
    (tmp_path / "root/cats/deep/loop").symlink_to(target)
    images = Images.open(str(tmp_path / "root"))
    assert [row.path for row in images] == ["cats/a.jpg", "cats/deep/a.jpg"]
    assert not images.passed_over


def test_linked_splits_in_a_linked_root_and_a_loop_beside_them(tmp_path):
    make(tmp_path, "store/cats/a.jpg", "images/test/cats/b.jpg")
    for name, target in {"images/train": "../store", "images/loop.jpg": ".", "root": "images"}.items():
        (tmp_path / name).symlink_to(target)
    assert rows(str(tmp_path / "root")) == [
        ("test/cats/b.jpg", "test", "cats"),
        ("train/cats/a.jpg", "train", "cats"),
    ]


def test_a_tree_deeper_than_the_stack_of_python(tmp_path):
    depth = sys.getrecursionlimit() + 100
    with nested(tmp_path, "d", depth):
        assert paths(str(tmp_path)) == ["d/" * depth + "a.jpg"]


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
    (tmp_path / "0.jpg").touch()
    with nested(tmp_path, "d" * 250, 20):
        assert "cannot list" in refusal(str(tmp_path))


@pytest.mark.parametrize(("name", "listed"), [("x.jpg", True), ("x", False)])
def test_a_link_that_may_not_be_followed_could_be_a_folder(tmp_path, monkeypatch, name, listed):
    uri = make(tmp_path, "z.jpg")
    denied = Mock(side_effect=PermissionError(13, "Permission denied"))
    scandir = os.scandir

    @contextmanager
    def with_link(place: str) -> Iterator[list[object]]:
        with scandir(place) as entries:
            yield [SimpleNamespace(name=name, is_dir=denied), *entries]

    monkeypatch.setattr(os, "scandir", with_link)
    if listed:
        assert paths(uri) == ["x.jpg", "z.jpg"]
    else:
        assert "Permission denied" in refusal(uri)


def test_what_is_not_there(tmp_path):
    (tmp_path / "t.csv").symlink_to("nowhere")
    (tmp_path / "none.parquet").write_text("hello")
    assert "cannot read the table" in refusal(str(tmp_path / "t.csv"))
    assert "cannot read the table" in refusal(str(tmp_path / "none.parquet"))
    for name in ("nothing", "nothing/a.jpg", "nothing.csv"):
        message = refusal(str(tmp_path / name))
        assert "does not exist" in message
        assert name in message


def test_a_file_that_is_neither_image_nor_table(tmp_path):
    make(tmp_path, "a.txt")
    with pytest.raises(UserError, match=r"a\.txt' has no extension of .* table of paths: \.parquet, \.csv"):
        Images.open(str(tmp_path / "a.txt"))


def test_no_image_says_what_was_there(tmp_path):
    uri = make(tmp_path, "a.txt", "b.md", "c/d.txt", "c/LICENSE", ".hidden.jpg")
    images = Images.open(uri)
    with pytest.raises(
        UserError, match=r"found 4 other files, extensions \(none\), \.md, \.txt;\nexpected \.jpg"
    ):
        list(images)
    assert images.passed_over.total() == 4
    assert "found 0 other files;\n" in refusal(make(tmp_path / "empty", "train/cats/"))


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
    assert images.passed_over.total() == 1


def test_remote_image_table_and_nothing(remote):
    upload(remote, "cats/a.jpg", "readme.txt")
    upload(remote, "t.csv", data=b"path,label\ncats/a.jpg,007\n")
    image = Images.open(f"{remote}/cats/a.jpg")
    assert [(row.path, row.label, row.size) for row in image] == [("a.jpg", None, 3)]
    assert Folder.open(image.root.uri).read("a.jpg") == b"123"
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
    cats, train = Images.open("bucket")
    assert cats == Listed("cats/a.jpg", None, "cats", 0, MOMENT)
    assert train.path == "train.jpg/b.jpg"


class Unreachable(AbstractFileSystem):
    """Storage that fails; the folder itself is there if `visible`."""

    def __init__(self, visible: bool) -> None:
        super().__init__()
        self.visible = visible

    def info(self, path: str, **_: object) -> dict[str, object]:
        if not self.visible:
            raise OSError("no credentials")
        return {"name": path, "type": "directory", "size": 0}

    def find(self, path: str, **_: object) -> dict[str, object]:
        raise OSError(f"no access to {path}")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(False, "cannot reach 'x://y': no credentials"), (True, "'y/': no access to y;")],
)
def test_remote_storage_that_fails(monkeypatch, visible, expected):
    filesystem = fs.PyFileSystem(fs.FSSpecHandler(Unreachable(visible)))
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
    first, second = (
        [assign_split(f"{i}{path}", 0.5, seed) for i in range(64)]
        for path, seed in (("1:2.jpg", 0), ("2.jpg", 1))
    )
    assert first != second


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


def test_listing_folders_and_naming_an_augmentation_need_neither_ray_nor_tensorflow_nor_opencv(tmp_path):
    code = (
        "import sys; from tlray.images.listing import Images; list(Images.open(sys.argv[1]));"
        "from tlray.images.augment import Augmentation, Views; Views(Augmentation.parse('strong'), 0);"
        "heavy = {'ray', 'tensorflow', 'keras', 'cv2', 'fsspec', 'pandas', 'pyarrow.dataset'};"
        "print(heavy & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, make(tmp_path, "a.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_output_among_the_images_is_refused_by_whatever_path(tmp_path):
    images, linked = tmp_path / "images", tmp_path / "linked"
    for folder in (images / "train" / "a", linked):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"")
    (images / "train" / "b").symlink_to(linked)
    (tmp_path / "shortcut").symlink_to(images / "train")
    source = Images.open(images)
    for place in ("images", "images/new", "shortcut/new", "x/../images/new", "linked/deep/new"):
        with pytest.raises(UserError, match=r"^--annotate .* lies among the images: choose a place outside"):
            source.check_outside(Folder.open(tmp_path / place), "--annotate")
    for place in ("images2", "new", "linked2/new", "."):
        source.check_outside(Folder.open(tmp_path / place))


def test_an_output_among_remote_images(tmp_path):
    images = Folder.open("memory://images")
    assert images.contains(Folder.open("memory://images/new"))
    assert not images.contains(Folder.open("memory://images2"))
    assert not images.contains(Folder.open("/images/new"))
