"""Copies with the class on them: written inside the folder, readable, and changed where the text is."""

import io
import posixpath
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.evaluation.annotate import annotate_one, check_target, copy_name
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.images.sandbox import TimedRun
from tlray.models.model import Model


@pytest.mark.parametrize(
    "path",
    [
        *("..", ".", "/", "../x.jpg", "../../../etc/passwd", "/etc/x.jpg", "///etc/x.jpg", "a/./.././../x"),
        *("s3://bucket/../../x.jpg", "a//../..//../x.jpg"),
    ],
)
def test_a_copy_never_leaves_the_folder(path):
    target = Folder.open("/somewhere/copies")
    place = posixpath.normpath(target.join(copy_name(path)))
    assert place.startswith("/somewhere/copies/"), place
    assert ".." not in copy_name(path).split("/")


def test_a_copy_has_the_path_of_its_image_or_one_with_a_digest():
    for path in ("cat/1.jpg", "cat/1.JPEG", "日本/é 1.jpg", "..hidden/...jpg", "a.tar/1.png"):
        assert copy_name(path) == path
    assert copy_name("a.parquet#7.png") == "a.parquet/7.png"
    assert re.fullmatch(r"cat/1\.webp\.[0-9a-f]{16}\.png", copy_name("cat/1.webp"))


LONG = "x" * 251
SIMILAR = [
    *(
        "w.webp",
        "w.webp.png",
        "w",
        "w.png",
        copy_name("w.webp"),
        "a/b.jpg",
        "a//b.jpg",
        "/a/b.jpg",
        "../a/b.jpg",
    ),
    *("a.parquet#7.png", "a.parquet/7.png", "a.parquet#7", "a.jpg", "a.jpg/b.png", "a.jpg_/b.png", "a.jpg/b"),
    *(f"{LONG}.jpg", f"{LONG}y.jpg"[1:], f"{LONG}/a.jpg", f"{LONG[1:]}/a.jpg", "", "/"),
]


def test_no_two_copies_have_one_name_and_none_has_the_name_of_a_folder(tmp_path):
    names = list(map(copy_name, SIMILAR))
    assert len(set(names)) == len(SIMILAR)
    for name in names:
        Folder.open(tmp_path).write(name, b"")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(SIMILAR)


MODEL = Model(Folder.open("/model"), Mock(created="today"))


def test_only_a_folder_of_copies_of_these_images_is_written_to(root, tmp_path):
    def check(target: Path, model: Model = MODEL, **begin: bool) -> None:
        check_target(Images.open(root.path), Folder.open(target), model, **begin)

    save(root, "cat/1.png")
    images, target, full = Path(root.path), tmp_path / "new" / "copies", tmp_path / "full"
    check(target)
    assert list(target.iterdir()) == []
    (target / "..tlray.json.0123abcd.tmp").touch()  # A killed command leaves this behind.
    check(target, begin=True)
    check(target, begin=True)  # Again, e.g. after it was stopped.
    with pytest.raises(UserError, match=r"copies of another job \(model_created today, not tomorrow\)"):
        check(target, Model(MODEL.folder, Mock(created="tomorrow")))
    full.mkdir()
    for name, content in {"1.png": b"mine", ".tlray.json": b"[]"}.items():
        (full / name).write_bytes(content)
        with pytest.raises(UserError, match="is not empty and has no copies by tlray"):
            check(full, begin=True)
        assert (full / name).read_bytes() == content
    (tmp_path / "link").symlink_to(images)
    (images / "dog").symlink_to(full)
    for inside in (images, images / "new", tmp_path / "link" / "new", full / "deep" / "new"):
        with pytest.raises(UserError, match=f"--annotate {inside} lies among the images"):
            check(inside)
    assert not list(images.rglob("*new*"))


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "images"))


def save(root: Folder, path: str, size: tuple[int, int] = (200, 120), mode: str = "RGB") -> np.ndarray:
    """A picture of one light colour; its pixels as RGB."""
    image = Image.new("RGB", size, (230, 200, 210)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, Image.registered_extensions()[posixpath.splitext(path)[1].lower()])
    root.write(path, stream.getvalue())
    return np.asarray(image.convert("RGB"))


def annotated(root: Folder, target: Folder, path: str, label: str = "cat", probability: float = 1.0) -> str:
    return annotate_one(Reader(root), TimedRun(), path, label, probability, target, 1_000_000)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("cat/1.png", "PNG"), ("1.JPG", "JPEG"), ("cat/1.webp", "PNG"), ("cat/deep/1.gif", "PNG")],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_copy_is_the_picture_with_a_text_on_it(root, tmp_path, path, kind, mode):
    original = save(root, path, mode=mode)
    before = root.read(path)
    target = Folder.open(str(tmp_path / "copies"))
    name = annotated(root, target, path)
    assert name == copy_name(path)
    with Image.open(io.BytesIO(target.read(name))) as copy:
        assert copy.format == kind
        pixels = np.asarray(copy.convert("RGB"))
    assert pixels.shape == original.shape
    difference = np.abs(pixels.astype(int) - original).max(axis=2)
    assert difference[:12, :12].max() > 100
    assert difference[-20:].max() < 20
    assert root.read(path) == before


def test_the_text_says_class_and_percent(root, tmp_path):
    """Other texts make other pictures; the same text the same."""
    save(root, "1.png")
    target = Folder.open(str(tmp_path / "copies"))
    texts = [("cat", 0.5), ("cat", 0.5), ("dog", 0.5), ("cat", 0.6), ("cat", 1.0)]
    copies = [target.read(annotated(root, target, "1.png", *text)) for text in texts]
    assert copies[0] == copies[1]
    assert len(set(copies)) == 4


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (900, 5)])
@pytest.mark.parametrize("label", ["cat", "a very long name of a class " * 9, "日本", "new\nline", ""])
def test_any_picture_and_any_label(root, tmp_path, size, label):
    save(root, "1.png", size)
    target = Folder.open(str(tmp_path / "copies"))
    with Image.open(io.BytesIO(target.read(annotated(root, target, "1.png", label)))) as copy:
        assert copy.size == size


def test_a_hostile_path_from_a_table(root, tmp_path):
    """A table may name images outside its root; their copies stay inside."""
    save(root, "1.png")
    target = Folder.open(str(tmp_path / "deep" / "copies"))
    for path in (f"/{root.path}/1.png", f"{root.path}/1.png", "../images/1.png"):
        name = annotated(root, target, path)
        assert (Path(target.path) / name).resolve().is_relative_to(target.path)
        assert target.is_file(name)
    copies = [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(target.path)]
    assert copies == [Path(root.path, "1.png")]
    assert np.asarray(Image.open(copies[0]))[0, 0].tolist() == [230, 200, 210]


def test_a_remote_target(root):
    save(root, "1.png")
    target = Folder.open("memory://annotate-test")
    assert target.is_file(annotated(root, target, "1.png"))
