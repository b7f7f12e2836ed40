"""Copies with the class on them: written inside the folder, readable, and changed where the text is."""

import io
import posixpath
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlray.core.storage import Folder
from tlray.evaluation.annotate import annotate_one, copy_name
from tlray.images.reader import Reader
from tlray.images.sandbox import with_time_limit

HOSTILE = [
    "../x.jpg",
    "../../../etc/passwd",
    "/etc/x.jpg",
    "//etc/x.jpg",
    "///etc/x.jpg",
    "//../x.jpg",
    "a/../../x.jpg",
    "a/./.././../x",
    "./../x.png",
    "s3://bucket/../../x.jpg",
    "file:///etc/x.jpg",
    "..",
    ".",
    "/",
    "//",
    "..//..//x.jpg",
    "a//../..//../x.jpg",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_copy_never_leaves_the_folder(path):
    target = Folder.open("/somewhere/copies")
    place = posixpath.normpath(target.join(copy_name(path)))
    assert place.startswith("/somewhere/copies/"), place
    assert ".." not in copy_name(path).split("/")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cat/1.jpg", "cat/1.jpg"),
        ("cat/1.JPEG", "cat/1.JPEG"),
        ("1.PNG", "1.PNG"),
        ("cat/1.webp", "cat/1.webp.png"),
        ("cat.jpg/1", "cat.jpg/1.png"),
        ("cat/1.tar.gif", "cat/1.tar.gif.png"),
        ("日本/é 1.jpg", "日本/é 1.jpg"),
        ("..hidden/...jpg", "..hidden/...jpg"),
    ],
)
def test_names(path, name):
    assert copy_name(path) == name


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "images"))


def save(root: Folder, path: str, size: tuple[int, int] = (200, 120), mode: str = "RGB") -> np.ndarray:
    """A picture of one light colour; its pixels as RGB."""
    image = Image.new("RGB", size, (230, 200, 210)).convert(mode)
    stream = io.BytesIO()
    image.save(
        stream,
        {".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP"}.get(
            posixpath.splitext(path)[1].lower(), "PNG"
        ),
    )
    root.write(path, stream.getvalue())
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("cat/1.png", "PNG"),
        ("cat/1.jpg", "JPEG"),
        ("cat/1.JPG", "JPEG"),
        ("1.jpeg", "JPEG"),
        ("cat/1.webp", "PNG"),
        ("cat/deep/1.gif", "PNG"),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_copy_is_the_picture_with_a_text_on_it(root, tmp_path, path, kind, mode):
    original = save(root, path, mode=mode)
    before = root.read(path)
    target = Folder.open(str(tmp_path / "copies"))
    name = annotate_one(Reader(root), with_time_limit, path, "cat", 0.987, target)
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

    def copy(label: str, probability: float) -> bytes:
        target = Folder.open(str(tmp_path / "copies"))
        return target.read(annotate_one(Reader(root), with_time_limit, "1.png", label, probability, target))

    assert copy("cat", 0.5) == copy("cat", 0.5)
    assert len({copy("cat", 0.5), copy("dog", 0.5), copy("cat", 0.6), copy("cat", 1.0)}) == 4


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (900, 5)])
@pytest.mark.parametrize("label", ["cat", "a very long name of a class " * 9, "日本", "new\nline", ""])
def test_any_picture_and_any_label(root, tmp_path, size, label):
    save(root, "1.png", size)
    target = Folder.open(str(tmp_path / "copies"))
    with Image.open(
        io.BytesIO(target.read(annotate_one(Reader(root), with_time_limit, "1.png", label, 1.0, target)))
    ) as copy:
        assert copy.size == size


def test_a_hostile_path_from_a_table(root, tmp_path):
    """A table may name images outside its root; their copies stay inside."""
    save(root, "1.png")
    target = Folder.open(str(tmp_path / "deep" / "copies"))
    for path in (f"/{root.path}/1.png", f"{root.path}/1.png", "../images/1.png"):
        name = annotate_one(Reader(root), with_time_limit, path, "cat", 1.0, target)
        assert (Path(target.path) / name).resolve().is_relative_to(target.path)
        assert target.is_file(name)
    copies = [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(target.path)]
    assert copies == [Path(root.path, "1.png")]
    assert np.asarray(Image.open(copies[0]))[0, 0].tolist() == [230, 200, 210]


def test_a_remote_target(root):
    import fsspec

    save(root, "1.png")
    target = Folder.open("memory://annotate-test")
    try:
        assert target.is_file(annotate_one(Reader(root), with_time_limit, "1.png", "cat", 1.0, target))
    finally:
        fsspec.filesystem("memory").rm("/annotate-test", recursive=True)
