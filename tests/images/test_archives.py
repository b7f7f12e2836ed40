"""Images in tar files and Parquet files: what is listed, what is read, and what is refused."""

import os
import random
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.archives import hugging_face, write_parquet, write_tar
from tests.support.listings import paths, refusal, rows
from tests.support.slow_storage import SlowStorage
from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.evaluation.annotate import copy_name
from tlray.images import walk
from tlray.images.archives import base, parquet, samples, tar
from tlray.images.bad_image import BadImage
from tlray.images.conventions import ColumnNames
from tlray.images.listing import Images, Listed
from tlray.images.reader import Reader

RETRY = "`extract --retry-errors` reads it as it is now"


def contents(uri: str) -> dict[str, bytes]:
    """The bytes of every image, found by where it was listed and, the same, by its path alone."""
    images = Images.open(uri)
    listed, read = list(images), Reader(images.root)
    data = {row.path: read(*row.place) for row in listed}
    assert len(data) == len(listed)
    by_path = Reader(images.root)
    assert {row.path: by_path(row.path) for row in reversed(listed)} == data
    return data


def fault(read: Reader, row: Listed) -> tuple[str, str]:
    with pytest.raises(BadImage) as caught:
        read(*row.place)
    assert caught.value.stage == "read"
    return caught.value.error, caught.value.message


# What is listed


def test_archives_in_folders_stand_for_their_images(tmp_path):
    write_tar(tmp_path / "train/cats/a.tar", [("1.jpg", b"a1"), ("notes.txt", b"x"), ("2.PNG", b"a2")])
    write_parquet(tmp_path / "train/dogs/b.parquet", jpg=[b"b0", b"b1"])
    write_parquet(tmp_path / "train/dogs/urls.parquet", url=["http://x"], key=["0"], image=["1.jpg"])
    write_tar(tmp_path / "test/cats/c.tar", [])
    (tmp_path / "test/cats/a.jpg").write_bytes(b"loose")
    images = Images.open(str(tmp_path))
    assert [(row.path, row.split, row.label) for row in images] == [
        ("test/cats/a.jpg", "test", "cats"),
        *((f"train/cats/a.tar/{name}", "train", "cats") for name in ("1.jpg", "2.PNG")),
        *((f"train/dogs/b.parquet#{row}", "train", "dogs") for row in (0, 1)),
    ]
    assert images.passed_over.total() == 2
    assert list(contents(str(tmp_path)).values()) == [b"loose", b"a1", b"a2", b"b0", b"b1"]


def test_one_archive(tmp_path):
    members = [("./cats/1.jpg", b"1"), ("dogs/deep/2.jpg", b"2"), ("3.jpg", b"3")]
    uri = write_tar(tmp_path / "train-0.tar", members)
    assert rows(uri) == [
        ("train-0.tar/cats/1.jpg", None, "cats"),
        ("train-0.tar/dogs/deep/2.jpg", None, "dogs"),
        ("train-0.tar/3.jpg", None, None),
    ]
    assert list(contents(uri).values()) == [b"1", b"2", b"3"]
    Images.open(uri).check_outside(Folder.open(str(tmp_path / "features")))
    with pytest.raises(UserError, match="lies among"):
        Images.open(str(tmp_path)).check_outside(Folder.open(str(tmp_path / "features")))


def test_the_size_is_the_members_and_the_time_the_archives(tmp_path):
    uri = write_tar(tmp_path / "a.tar", [("1.jpg", b"12345"), ("2.jpg", b"")])
    os.utime(uri, (0, 1_700_000_000))
    (first, second) = Images.open(uri)
    assert (first.size, second.size) == (5, 0)
    assert first.modified == second.modified == Images.open(uri).root.status("a.tar")[1]
    (row,) = Images.open(write_parquet(tmp_path / "b.parquet", image=[b"12345"]))
    assert (row.size, row.offset) == (None, 0)
    assert row.modified is not None


def test_the_label_of_a_sample_goes_before_its_folder_and_that_before_the_archives(tmp_path):
    members = [
        *(("cats/1.cls", b"7\n"), ("cats/1.jpg", b"")),
        *(("2.a.jpg", b""), ("2.b.png", b""), ("2.cls", b"late"), ("2.json", b"{}")),
        *(("cats/3.jpg", b""), ("4.jpg", b"")),
        *(("cats/5.cls", b" "), ("cats/5.jpg", b"")),
        *(("6.jpg", b""), ("other.cls", b"x")),
    ]
    write_tar(tmp_path / "birds/a.tar", members)
    labels = ["7", "late", "late", "cats", "birds", None, "birds"]
    assert [row[2] for row in rows(str(tmp_path))] == labels


IMAGES = [(f"{number}.jpg", b"") for number in range(12)]
LABELS = [(f"{number}.cls", b"%d" % (number % 2)) for number in range(12)]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("22.00.png", b""), ("22.00.cls", b"a"), ("22.01.png", b""), ("22.01.cls", b"b")], ["a", "b"]),
        ([("22.01.cls", b"b"), ("22.cls", b"a"), ("22.00.png", b""), ("22.01.png", b"")], ["a", "b"]),
        ([("p.v2.jpg", b""), ("p.v2.cls", b"a"), ("p.cls", b"b"), ("p.jpg", b"")], ["a", "b"]),
        ([("1.JPG", b""), ("1.CLS", b"a")], ["a"]),
        ([("1.jpg", b""), ("1.cls", b"\xef\xbb\xbfa\r\n")], ["a"]),
        ([("1.jpg", b""), ("1.class", b"a"), ("2.label", b"b"), ("2.jpg", b""), ("2.txt", b"x")], ["a", "b"]),
        ([("1.jpg", b""), ("1.json", b'{"height": 1, "label": 7}')], ["7"]),
        ([("1.JSON", b'{"class": " a "}'), ("1.jpg", b"")], ["a"]),
        ([("c/1.jpg", b""), ("c/1.json", b'{"label": null}')], [None]),
        ([("c/1.jpg", b""), ("c/1.json", b'{"caption": "x"}')], ["c"]),
        ([("c/1.jpg", b""), ("c/1.json", b"[1]")], ["c"]),
        ([*IMAGES, *LABELS], [*"01" * 6]),
        ([*LABELS, *reversed(IMAGES)], [*"10" * 6]),
        ([("a.b/1.jpg", b""), ("a.cls", b"x"), ("a.b.cls", b"y")], ["a.b"]),
        ([("1.cls", b"a"), ("1.seg.png", b""), ("1.heic", b""), ("1.dng", b"")], ["a", "a", "a"]),
    ],
)  # fmt: skip
def test_the_label_of_a_sample(tmp_path, members, expected):
    assert [label for _, _, label in rows(write_tar(tmp_path / "x.tar", members))] == expected


@pytest.mark.parametrize(
    "content",
    [
        *(b"\xff\xfe", b"two\nlines", b"x" * 1025, b"{", b"[" * 9999),
        *(b'{"label": ["a"]}', b'{"label": 1.5}', b'{"category": {}}'),
    ],
)
def test_a_label_that_is_no_class_name_is_refused_if_an_image_has_it(tmp_path, content):
    name = "1.json" if content[:1] in b"{[" else "1.cls"
    uri = write_tar(tmp_path / "a.tar", [("1.jpg", b""), (name, content)])
    assert f"its member {name!r} is no class name" in refusal(uri)
    assert "images or labels would be missing" in refusal(uri)
    (_,) = rows(write_tar(tmp_path / "a.tar", [("2.jpg", b""), (name, content)]))


def test_a_label_that_is_a_link_is_refused(tmp_path):
    link = tarfile.TarInfo("1.cls")
    link.type, link.linkname = tarfile.LNKTYPE, "0.cls"
    uri = write_tar(tmp_path / "a.tar", [("0.cls", b"a"), ("0.jpg", b""), link, ("1.jpg", b"")])
    assert "'1.cls' is no class name" in refusal(uri)


def test_labels_that_belong_to_no_image_or_differ_are_told(tmp_path):
    images = Images.open(
        write_tar(tmp_path / "a.tar", [("1.jpg", b""), *((f"x{n}.cls", b"a") for n in range(6))])
    )
    assert [row.label for row in images] == [None]
    assert images.passed_over == {".cls": 6}
    assert "a.tar: labels without an image, e.g. 'x5.cls'" in images.warnings[0]
    differ = [("1.jpg", b""), ("1.json", b'{"label": "b"}'), ("1.cls", b"a")]
    images = Images.open(write_tar(tmp_path / "b.tar", differ))
    assert [row.label for row in images] == ["a"]
    assert "of two labels the first is taken: '1.cls' is 'a', and '1.json' is 'b'" in images.warnings[0]
    assert "two labels" in refusal(write_tar(tmp_path / "c.tar", [*differ, ("1.CLS", b"c")]))
    assert images.passed_over == {}


def test_the_user_names_the_label_of_samples(tmp_path):
    members = [("1.txt", b"a"), ("1.jpg", b""), ("2.jpg", b""), ("2.json", b'{"txt": "b", "label": 3}')]
    uri = write_tar(tmp_path / "a.tar", members)
    for given, labels in (("txt", ["a", "b"]), ("none", [None, None]), (None, [None, "3"])):
        images = Images.open(uri, ColumnNames(label=given))
        assert [row.label for row in images] == labels
        assert images.passed_over == {"txt": {}, "none": {".txt": 1, ".json": 1}, None: {".txt": 1}}[given]
        assert images.warnings == []
    with pytest.raises(UserError, match="--label-column x: there is no table or archive"):
        list(Images.open(uri, ColumnNames(label="x")))


def test_rows_without_a_label_do_not_get_that_of_the_folder(tmp_path):
    labels = pa.array(["a", None, "", " "])
    write_parquet(tmp_path / "cats/a.parquet", image=[b"x"] * 4, label=labels)
    hugging_face(tmp_path / "cats/b.parquet", [b"x"], [-1], ["lion"])
    write_parquet(tmp_path / "cats/c.parquet", image=[b"x"])
    assert [label for *_, label in rows(str(tmp_path))] == ["a", None, None, None, None, "cats"]


def test_a_label_that_is_far_from_its_image_fails_the_listing(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_MAX_WAITING", 10)
    frames = [(f"frame.{number:04d}.jpg", b"") for number in range(50)]
    assert len(paths(write_tar(tmp_path / "a.tar", frames))) == 50
    assert {row[2] for row in rows(write_tar(tmp_path / "a.tar", [("frame.cls", b"x"), *frames]))} == {"x"}
    labels = [(name.replace("jpg", "cls"), b"x") for name, _ in frames]
    for members in ([*frames, ("frame.cls", b"x")], [*frames, *labels], [*labels, *frames]):
        message = refusal(write_tar(tmp_path / "b.tar", members))
        assert "the label of 'frame.0000.jpg' is too far from it: sort the members by name" in message
    neighbours = [member for pair in zip(frames, labels, strict=True) for member in pair]
    assert {row[2] for row in rows(write_tar(tmp_path / "c.tar", neighbours))} == {"x"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["n01440764", "n01443537"], ["n01440764", "n01443537"]),
        (["cats", "Dogs", "._cats"], ["Dogs", "cats"]),
        (["001.Albatross", "002.Gull"], ["001.Albatross", "002.Gull"]),
        (["shard-00000", "shard-00001"], [None, None]),
        (["00000", "00001"], [None, None]),
        (["data_0", "data_1"], [None, None]),
        (["cats-0", "cats-1", "dogs-0"], [None, None, None]),
        (["3fa85f64", "9b1deb4d"], [None, None]),
        (["train-000", "cats"], [None, None]),
        (["cats"], [None]),
    ],
)
def test_a_tar_for_each_class(tmp_path, names, expected):
    for name in names:
        write_tar(tmp_path / f"{name}.tar", [("1.jpg", b""), ("2.jpg", b"")])
    images = Images.open(str(tmp_path))
    assert [row.label for row in images][::2] == expected
    assert images.columns == ({"label": "the names of the tar files"} if expected[0] else {})
    assert Counter(rows(str(tmp_path / f"{names[0]}.tar"))[0][1:]) == {None: 2}


def test_the_names_of_tars_are_no_labels_where_there_are_others(tmp_path):
    write_tar(tmp_path / "train/cats.tar", [("1.jpg", b""), ("2.jpg", b""), ("2.cls", b"lion")])
    write_tar(tmp_path / "train/dogs.tar", [("pug/1.jpg", b""), ("2.jpg", b"")])
    write_tar(tmp_path / "train/bats.tar", [("1.jpg", b"")])
    assert [label for _, _, label in rows(str(tmp_path))] == ["bats", None, "lion", "pug", None]
    assert {split for _, split, _ in rows(str(tmp_path))} == {"train"}


def test_parquet_of_hugging_face(tmp_path):
    hugging_face(tmp_path / "data/train-00000-of-00002.parquet", [b"a", b"b"], [1, -1], ["cat", "dog"])
    hugging_face(tmp_path / "data/test-00000-of-00001.parquet", [b"c"], [0], ["cat", "dog"])
    assert rows(str(tmp_path / "data")) == [
        ("test-00000-of-00001.parquet#0", "test", "cat"),
        ("train-00000-of-00002.parquet#0", "train", "dog"),
        ("train-00000-of-00002.parquet#1", "train", None),
    ]
    assert list(contents(str(tmp_path)).values()) == [b"c", b"a", b"b"]
    assert "row 0 has the label 2, but there are only 2 class names" in refusal(
        hugging_face(tmp_path / "x.parquet", [b""], [2], ["cat", "dog"])
    )


def test_parquet_with_keys_as_img2dataset_writes_it(tmp_path):
    uri = write_parquet(tmp_path / "a.parquet", key=["0002", "0001"], jpg=[b"b", b"a"], cls=[3, None])
    assert rows(uri) == [("a.parquet#0002", None, "3"), ("a.parquet#0001", None, None)]
    assert list(contents(uri).values()) == [b"b", b"a"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"img": [b"x"], "labels": [4], "split": ["val"]}, ("#0", "validation", "4")),
        ({"image": [b"x"], "Category": [4], "set": ["Testing"]}, ("#0", "test", "4")),
        ({"image": [b"x"], "class": ["x"], "categories": [[1]], "set": [None]}, ("#0", None, "x")),
        ({"image": pa.array([b"x"], pa.large_binary()), "label": ["x"]}, ("#0", None, "x")),
        ({"image": [b"x"], "mask.png": [b"y"], "label": [True]}, ("#0", None, "true")),
        ({"image": [b"x"], "label": pa.array(["y"]).dictionary_encode()}, ("#0", None, "y")),
        ({"image": [b"x"], "path": ["somewhere.jpg"]}, ("#0", None, None)),
        ({"webp": [b"x"], "__key__": [12]}, ("#12", None, None)),
        ({"heic": [b"x"]}, ("#0", None, None)),
        ({"Image": [b"x"], "Category": ["c"]}, ("#0", None, "c")),
        ({"image_bytes": [b"x"], "label": pa.array([None], pa.string())}, ("#0", None, None)),
        ({"image": [b"x"], "key": ["a/b#c.jpg"]}, ("#a/b#c.jpg", None, None)),
    ],
)
def test_columns_of_parquet(tmp_path, columns, expected):
    uri = write_parquet(tmp_path / "a.parquet", **columns)
    assert rows(uri) == [("a.parquet" + expected[0], *expected[1:])]
    assert list(contents(uri).values()) == [b"x"]


def test_the_name_of_an_archive_tells_its_split(tmp_path):
    for name in ("train-000.tar", "imagenet_VAL_000.tar", "trainer-1.tar", "x/test.tar"):
        write_tar(tmp_path / "flat" / name, [("1.jpg", b"")])
    assert [(path.partition(".tar")[0], split) for path, split, _ in rows(str(tmp_path / "flat"))] == [
        ("imagenet_VAL_000", "validation"),
        ("train-000", "train"),
        ("trainer-1", None),
        ("x/test", "test"),
    ]


def test_a_table_of_paths_may_name_images_in_archives(tmp_path):
    write_tar(tmp_path / "a.tar", [("x/1.jpg", b"1"), ("2.jpg", b"2")])
    write_parquet(tmp_path / "b.parquet", image=[b"3"])
    given = ["a.tar/2.jpg", "b.parquet#0", f"file://{tmp_path}/a.tar/x/1.jpg"]
    uri = write_parquet(tmp_path / "table.parquet", path=given)
    assert contents(uri) == dict(zip(given, (b"2", b"3", b"1"), strict=True))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/cats/1.jpg", "Val/cats/deep/1.jpg"], [("train", "cats"), ("validation", "cats")]),
        (["./test_set/1.jpg"], [("test", None)]),
        (["bus/1.jpg", "train/1.jpg"], [(None, "bus"), (None, "train")]),
        (["archive/train/cats/1.jpg", "archive/test/cats/1.jpg"], [(None, "archive")] * 2),
        (["train/x/1.jpg", "1.jpg"], [("train", "x"), (None, None)]),
    ],
)
def test_splits_in_a_tar(tmp_path, names, expected):
    images = Images.open(write_tar(tmp_path / "a.tar", [(name, b"") for name in names]))
    assert [(row.split, row.label) for row in images] == expected
    assert len(images.warnings) == (expected[0][0] is None)


def test_folders_of_a_tar_that_contradict_the_first_ones_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_MAX_WAITING", 2)
    names = ["test/a/1.jpg", "test/a/2.jpg", "train/a/1.jpg", "zebra/1.jpg"]
    uri = write_tar(tmp_path / "a.tar", [(name, b"") for name in names])
    assert "'zebra/1.jpg' lies beside folders of splits" in refusal(uri)
    uri = write_tar(tmp_path / "b.tar", [("train/1.cls", b"cats"), ("train/1.jpg", b"")])
    assert rows(uri) == [("b.tar/train/1.jpg", "train", "cats")]


def test_archives_on_storage_that_fsspec_opens(tmp_path):
    tar_file = write_tar(tmp_path / "a.tar", [("x/1.jpg", b"1"), ("x/2.jpg", b"2")])
    storage = Folder.open("memory://archives")
    storage.write("cats/a.tar", Path(tar_file).read_bytes())
    storage.write("b.parquet", Path(write_parquet(tmp_path / "b.parquet", image=[b"3"])).read_bytes())
    try:
        expected = {"b.parquet#0": b"3", "cats/a.tar/x/1.jpg": b"1", "cats/a.tar/x/2.jpg": b"2"}
        assert contents(storage.uri) == expected
    finally:
        storage.remove()


def test_folders_and_files_that_are_named_like_archives(tmp_path):
    expected = {name: name.encode() for name in ("a.parquet#3.jpg", "x.tar/1.jpg", "x.tar/y.tar/2.jpg")}
    for name, data in expected.items():
        Folder.open(str(tmp_path)).write(name, data)
    write_tar(tmp_path / "x.tar/z.tar", [("q.tar/3.jpg", b"in")])
    assert contents(str(tmp_path)) == expected | {"x.tar/z.tar/q.tar/3.jpg": b"in"}
    write_parquet(tmp_path / "a.parquet", image=[b""], key=["3.jpg"])
    assert "'a.parquet#3.jpg'" in refusal(str(tmp_path))


def test_hidden_members_are_only_counted_and_copies_get_a_place(tmp_path):
    names = ["._1.jpg", "__MACOSX/2.jpg", ".git/x/3.jpg"]
    names += ["../../4.jpg", "/5.jpg", "x/./6.jpg", "./././7.jpg\0.txt"]
    images = Images.open(write_tar(tmp_path / "a.tar", [(name, b"") for name in names]))
    listed = [row.path for row in images]
    assert (images.hidden, images.passed_over) == (3, {})
    assert listed == ["a.tar/../../4.jpg", "a.tar//5.jpg", "a.tar/x/./6.jpg", "a.tar/7.jpg"]
    names = ["a.tar/4.jpg.", "a.tar/5.jpg.", "a.tar/x/6.jpg.", "a.tar/7.jpg", "b.parquet/7."]
    copies = [copy_name(path) for path in [*listed, "b.parquet#7"]]
    assert [copy[: len(name)] for copy, name in zip(copies, names, strict=True)] == names


def test_folders_and_archives_are_listed_side_by_side_in_order(tmp_path):
    for number in range(8):
        write_tar(tmp_path / f"{number}a/x.tar", [("1.jpg", b"")])
        (tmp_path / f"{number}a/2.jpg").touch()
    storage = SlowStorage()
    assert [row.path for row in Images(storage.folder(tmp_path))] == paths(str(tmp_path))
    assert min(storage.most["find"], storage.most["open"]) > 3
    (tmp_path / "5a/y.tar").write_bytes(b"no tar")
    images = iter(Images(storage.folder(tmp_path)))
    for number in range(12):
        assert next(images).path == f"{number // 2}a/{('2.jpg', 'x.tar/1.jpg')[number % 2]}"
    with pytest.raises(UserError, match=r"5a/y\.tar"):
        list(images)


# What is refused


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.zst", "a.tbz2"])
def test_compressed_tar_files_are_refused(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "1.jpg").touch()
    assert "unpack it" in refusal(str(tmp_path / name))
    assert "unpack it" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:700], "cut off"),
        (lambda data: data[:1000], "cut off"),
        (lambda data: data[:2048], "end mark is missing"),
        (lambda _: b"", "end mark is missing"),
        (lambda data: data[:1024] + b"x" + data[1025:], "no header of a tar file at byte 1024"),
        (lambda data: data + data, "behind its end mark"),
        (lambda _: b"\x89PNG" + bytes(600), "no header"),
    ],
)
def test_a_damaged_tar_fails_the_listing(tmp_path, damage, reason):
    path = tmp_path / "a.tar"
    write_tar(path, [("1.jpg", b"x" * 300), ("2.jpg", b"y" * 300)])
    assert len(paths(str(path))) == 2
    path.write_bytes(damage(path.read_bytes()))
    for uri in (path, tmp_path):
        message = refusal(str(uri))
        assert reason in message
        assert f"'{path}'" in message


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "nowhere.parquet").symlink_to("nothing")
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    for name in ("pipe.tar", "nowhere.parquet", "zero.tar"):
        assert name in refusal(str(tmp_path / name))
    assert "cannot list the images in" in refusal(str(tmp_path))


def test_a_name_that_comes_twice_is_refused(tmp_path):
    twice = [("1.jpg", b"a"), ("2.jpg", b"b"), ("./1.jpg", b"c")]
    assert "has the member '1.jpg' twice" in refusal(write_tar(tmp_path / "a.tar", twice))
    for last, reason in (("x", "has the key 'x' twice"), (None, "row 1 has no 'key'")):
        uri = write_parquet(tmp_path / "b.parquet", image=[b"", b""], key=["x", last])
        assert reason in refusal(uri)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [[1, 2]]}, "image: list<element: int64>; expected binary"),
        ({"image": pa.array([{"bytes": {"bytes": b""}}])}, "image: struct<bytes: struct<"),
        ({"image": [b""], "img": [7], "key": [[7]]}, "list"),
        ({"jpg": [b""], "png": [b""]}, "several columns of images (jpg, png)"),
        ({"image": [b""], "label": [[1]]}, "list"),
        ({"image": [b""], "label": [b"\xff"]}, "UTF8"),
        ({"image": [b""], "split": ["cats"]}, "row 0 has the split 'cats'"),
    ],
)
def test_parquet_that_is_refused(tmp_path, columns, expected):
    uri = write_parquet(tmp_path / "a.parquet", **columns)
    for place in (uri, str(tmp_path)):
        message = refusal(place)
        assert expected in message
        assert uri in message


def test_a_column_that_is_there_twice_and_metadata_that_say_nothing(tmp_path):
    twice = pa.table([pa.array([b""]), pa.array(["x"]), pa.array(["y"])], ["image", "label", "label"])
    pq.write_table(twice, tmp_path / "a.parquet")
    assert "the column 'label' twice" in refusal(str(tmp_path))
    (row,) = Images.open(str(tmp_path), ColumnNames(label="none"))
    assert Reader(Folder.open(str(tmp_path)))(*row.place) == b""
    features = '{"info": {"features": {"label": {"names": 7}}}}'
    for metadata in ("[1]", "{", "[" * 100_000, '{"info": []}', features):
        table = pa.table({"image": [b""], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, tmp_path / "a.parquet")
        assert "a.parquet" in refusal(str(tmp_path))


def test_damaged_parquet_fails_the_listing_or_is_error_rows(tmp_path):
    uri = write_parquet(tmp_path / "a.parquet", 2, image=[bytes([i]) * 1000 for i in range(6)])
    whole = Path(uri).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-10])
    assert "a.parquet" in refusal(uri)
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(1000) + whole[1004:])
    listed, read = list(Images.open(uri)), Reader(Folder.open(str(tmp_path)))
    assert len(listed) == 6
    assert [fault(read, row)[0] for row in listed[:2]] == ["Damaged"] * 2
    assert read(*listed[-1].place) == b"\x05" * 1000


# Hostile archives


def raw(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header of any size."""
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(records: bytes) -> bytes:
    """An extended header of these records."""
    return raw(b"x", len(records), b"x") + records + bytes(-len(records) % 512)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (raw(b"1.jpg", 1 << 62), "extends beyond its end"),
        (raw(b"x", 1 << 19, b"L"), "cut off"),
        (pax(b"10 size=5\n") + raw(b"x", -512, b"L"), "a size of -512"),
        (raw(b"1.jpg", -5), "a size of -5"),
        (raw(b"x", 1 << 40, b"x"), "header of more than"),
        (raw(b"x", 1 << 40, b"L"), "header of more than"),
        (raw(b"x", 0, b"L") * 5000, "header of more than"),
        *((pax(record), "pax header") for record in (b"9 no end\n", b"9" * 17 + b" path=x\n", b"0 path=x\n")),
        (pax(b"18 size=999999999\n") + raw(b"1.jpg", 0), "beyond its end"),
        (pax(b"11 size=-1\n") + raw(b"1.jpg", 0), "a size of -1"),
    ],
)
def test_headers_that_do_harm(tmp_path, data, expected):
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    tracemalloc.start()
    assert expected in refusal(str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_damage_of_any_kind_is_refused_or_an_error_row_and_never_another_image(tmp_path, kind):
    chance = random.Random(0)
    given = {f"{number}{'x' * 40 * number}.jpg": chance.randbytes(600) for number in range(5)}
    uri = tmp_path / f"a.{kind}"
    if kind == "tar":
        write_tar(uri, [*given.items(), ("4.cls", b"x")])
    else:
        write_parquet(uri, 2, image=[*given.values()], key=[*given])
    whole, listed, outcomes = uri.read_bytes(), list(Images.open(str(uri))), Counter[str]()
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 5, 50))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        uri.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        rows = listed
        try:
            rows = listed + list(Images.open(str(uri)))
        except UserError:
            outcomes["refused"] += 1
        read = Reader(Folder.open(str(tmp_path)))
        for row in rows:
            try:
                data = read(row.path, row.offset)
            except BadImage:
                outcomes["bad"] += 1
                continue
            outcomes["read"] += 1
            others = [other for name, other in given.items() if not row.path.endswith(name)]
            assert data not in others or row not in listed
    assert min(outcomes[outcome] for outcome in ("refused", "bad", "read")) > 50


def test_a_long_pax_header_takes_no_time(tmp_path):
    (tmp_path / "a.tar").write_bytes(pax(b"5 a=\n" * 200_000) + raw(b"1.jpg", 0) + bytes(1024))
    assert paths(str(tmp_path)) == ["a.tar/1.jpg"]


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_kind(tmp_path, style):
    names = ["a b/new\nline.jpg", "größe/日本 🐈.jpg", "-rf.jpg", "%41#?.jpg"]
    names += ["y/" * 60 + "z.jpg" if style == tarfile.USTAR_FORMAT else "x" * 3000 + ".jpg"]
    members = [(name, name.encode()) for name in names]
    uri = write_tar(tmp_path / "a.tar", members, format=style)
    assert contents(uri) == {f"a.tar/{name}": name.encode() for name in names}


def test_names_that_are_not_utf8(tmp_path):
    member = (os.fsdecode(b"caf\xe9/\xff.jpg"), b"data")
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        uri = write_tar(tmp_path / "a.tar", [member], format=style)
        assert rows(uri) == [("a.tar/caf\\xe9/\\xff.jpg", None, "caf\\xe9")]
        assert list(contents(uri).values()) == [b"data"]


def test_members_that_are_no_files_are_error_rows(tmp_path):
    members = []
    for name, kind in (("hard.jpg", b"1"), ("soft.jpg", b"2"), ("device.jpg", b"3"), ("pipe.jpg", b"6")):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        members.append(info)
    folder = tarfile.TarInfo("folder.jpg")
    folder.type = b"5"
    uri = Path(write_tar(tmp_path / "a.tar", [*members, folder, ("1.jpg", b"good")]))
    sparse = pax(b"22 GNU.sparse.major=1\n") + raw(b"sparse.jpg", 0)
    uri.write_bytes(sparse + raw(b"old.jpg", 0, b"S") + uri.read_bytes())
    images = Images.open(str(uri))
    *bad, good = images
    read = Reader(images.root)
    assert [row.path.partition("/")[2] for row in bad] == [
        *("sparse.jpg", "old.jpg", "hard.jpg", "soft.jpg", "device.jpg", "pipe.jpg")
    ]
    assert {fault(read, row)[0] for row in bad} == {"NotAFile"}
    assert read(good.path, good.offset) == b"good"


def test_what_is_too_large_or_missing_is_an_error_row(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", [("1.jpg", b"12345678")])
    write_parquet(tmp_path / "b.parquet", image=[None, b"12345678"])
    hugging_face(tmp_path / "c.parquet", [None], [0], ["x"])
    for module in (tar, parquet):
        monkeypatch.setattr(module, "MAX_BYTES", 7)
    images = Images.open(str(tmp_path))
    read = Reader(images.root)
    assert [fault(read, row)[0] for row in images] == ["FileTooLarge", "NoBytes", "FileTooLarge", "NoBytes"]


# An archive that was replaced


def test_the_name_decides_in_a_tar_that_was_written_anew(tmp_path):
    uri = write_tar(tmp_path / "a.tar", [("1.jpg", b"one"), ("2.jpg", b"two"), ("3.jpg", b"three")])
    images = Images.open(uri)
    first, second, third = images
    write_tar(tmp_path / "a.tar", [("3.jpg", b"3"), ("0.jpg", b"0"), ("1.jpg", b"ONE")])
    read = Reader(images.root)
    assert read(*first.place) == b"ONE"
    assert fault(read, third) == ("Replaced", f"it has 1 bytes, and had 5 when it was listed; {RETRY}")
    assert read(*third.place._replace(size=None)) == b"3"
    assert fault(read, second) == ("FileNotFoundError", "removed since it was listed")
    (tmp_path / "a.tar").unlink()
    assert fault(Reader(images.root), first) == ("FileNotFoundError", "removed since it was listed")


def test_keys_decide_in_parquet_and_rows_without_a_key_are_refused_after_a_change(tmp_path):
    write_parquet(tmp_path / "a.parquet", image=[b"1", b"2"], key=["x", "y"])
    plain = write_parquet(tmp_path / "b.parquet", image=[b"1", b"2"])
    x, y, *numbered = Images.open(str(tmp_path))
    write_parquet(tmp_path / "a.parquet", image=[b"3", b"4"], key=["z", "x"])
    write_parquet(tmp_path / "b.parquet", image=[b"3", b"4"])
    os.utime(plain, (0, 1_700_000_000))
    read = Reader(Folder.open(str(tmp_path)))
    assert read(x.path, x.offset, x.modified) == b"4"
    assert fault(read, y)[0] == "FileNotFoundError"
    assert [fault(read, row)[0] for row in numbered] == ["Replaced", "Replaced"]
    write_parquet(tmp_path / "b.parquet", image=[b"3", b"4"], key=["1", "0"])
    assert [fault(Reader(read.root), row)[0] for row in numbered] == ["Replaced", "Replaced"]
    write_parquet(tmp_path / "a.parquet", path=["x.jpg"])
    assert fault(Reader(Folder.open(str(tmp_path))), x)[0] == "Damaged"


def test_names_of_one_hash_are_not_one_name(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "hash", lambda _: 1, raising=False)
    write_tar(tmp_path / "a.tar", [("1.jpg", b"1"), ("2.jpg", b"2"), ("3.jpg", b"3")])
    write_parquet(tmp_path / "b.parquet", image=[b"4", b"5", b"6"], key=["x", "y", "z"])
    assert list(contents(str(tmp_path)).values()) == [b"1", b"2", b"3", b"4", b"5", b"6"]
    read = Reader(Folder.open(str(tmp_path)))
    for path in ("a.tar/4.jpg", "b.parquet#w"):
        assert fault(read, Listed(path, None, None, None, None))[0] == "FileNotFoundError"


def test_rows_are_read_in_any_order_and_a_row_group_once_in_theirs(tmp_path, monkeypatch):
    uri = write_parquet(tmp_path / "a.parquet", 10, image=[str(i).encode() for i in range(57)])
    batches = Mock(side_effect=parquet.Parquet._batches)
    monkeypatch.setattr(parquet.Parquet, "_batches", lambda *arguments: batches(*arguments))
    images = Images.open(uri)
    listed, read = list(images), Reader(images.root)
    assert [read(row.path, row.offset) for row in listed] == [str(i).encode() for i in range(57)]
    assert [call.args[2] for call in batches.call_args_list if call.args[3]] == [0, 1, 2, 3, 4, 5]
    for row in (56, 3, 3, 2, 19, 20, 0, 55):
        assert read(f"a.parquet#{row}") == str(row).encode()
    for name in ("57", "-1", "x", "1" * 30, "", "0x1"):
        assert fault(read, Listed(f"a.parquet#{name}", None, None, None, None))[0] == "FileNotFoundError"


def test_memory_stays_flat(tmp_path, monkeypatch):
    """A tar of many members, also if it was written anew, and a Parquet file of one row group of 64 MB."""
    monkeypatch.setattr(walk, "_IMAGES_AHEAD", 100)
    write_tar(tmp_path / "a.tar", [(f"{number}.jpg", b"") for number in range(5000)])
    images = Images.open(str(tmp_path / "a.tar"))
    tracemalloc.start()
    assert sum(1 for _ in images) == 5000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    read, before = Reader(images.root), tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    assert read("a.tar/4999.jpg") == b""
    assert tracemalloc.get_traced_memory()[1] - before < 400_000
    tracemalloc.stop()
    data = np.random.default_rng(0).bytes(1 << 20)
    table = pa.table({"image": [data[i:] + data[:i] for i in range(64)]})
    pq.write_table(table, tmp_path / "b.parquet", write_batch_size=1, use_dictionary=False)
    del table
    images = Images.open(str(tmp_path / "b.parquet"))
    read, before, most = Reader(images.root), pa.total_allocated_bytes(), 0
    for row in images:
        assert len(read(row.path, row.offset)) == 1 << 20
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 50 << 20
