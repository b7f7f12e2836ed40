"""What folders mean: splits, classes, or nothing; and the labels of `metadata.csv` beside the images."""

from pathlib import Path

import pytest

from tests.support.archives import hugging_face, write_parquet
from tests.support.listings import refusal, rows
from tlray.core.errors import UserError
from tlray.images.conventions import ColumnNames, split_in, split_named
from tlray.images.listing import Images


def make(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Trains TRAINING training_set train-set Training_Data trainset train_images trn"),
        ("validation", "val valid validation dev Dev_Set val_data validation-split"),
        ("test", "test testing Test_Set test-images tst eval evaluation holdout hold-out HOLDOUT_SET"),
        (None, "cats trainer tester testament valley development set data images 1 traindog"),
    ],
)
def test_names_of_splits(split, names):
    for name in names.split(" "):
        assert split_named(name) == split_named(f" {name.replace('_', ' ')} ") == split, name


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("training-00000-of-00005.parquet", "train"),
        ("my_dev.tar", "validation"),
        ("imagenet-VAL-000001.tar", "validation"),
        ("eval-0.parquet", "test"),
        ("contest.tar", None),
        ("trains.tar", None),
    ],
)
def test_splits_in_names_of_archives(name, split):
    assert split_in(name) == split


@pytest.mark.parametrize(
    ("first", "second"),
    [("training", "testing"), ("Training Set", "test_set"), ("dev", "HOLDOUT"), ("train", "eval")],
)
def test_folders_with_names_of_splits(tmp_path, first, second):
    uri = make(tmp_path, f"{first}/0/a.jpg", f"{first}/1/b.jpg", f"{second}/0/c.jpg")
    assert rows(uri) == [
        (f"{folder}/{label}/{name}.jpg", split_named(folder), label)
        for folder, label, name in sorted([(first, "0", "a"), (first, "1", "b"), (second, "0", "c")])
    ]
    assert Images.open(uri).warnings == []


def test_two_folders_of_one_split_are_merged_and_a_warning_says_so(tmp_path):
    images = Images.open(make(tmp_path, "train/x/a.jpg", "val/x/b.jpg", "validation/x/c.jpg"))
    assert [row.split for row in images] == ["train", "validation", "validation"]
    assert images.warnings[0].startswith(
        "of the folders train, val, validation, some are read as the same split"
    )


@pytest.mark.parametrize(
    ("names", "inner", "folders"),
    [
        (["archive/train/Cat/a.jpg", "archive/test/Dog/b.jpg"], "archive", "test, train"),
        (["a/b/train/Cat/a.jpg", "a/b/test/Dog/b.jpg", "a/b/readme.txt"], "a", "b"),
        (
            ["PetImages/Cat/a.jpg", "PetImages/Dog/b.jpg", "readme.txt", "__MACOSX/x/y.jpg"],
            "PetImages",
            "Cat, Dog",
        ),
        (["archive/train/Cat/a.jpg"], "archive", "train"),
        (["data/archive/Cat/a.jpg", "data/archive/Dog/a.jpg"], "data/archive", "Cat, Dog"),
    ],
)
def test_one_folder_too_high(tmp_path, names, inner, folders):
    images = Images.open(make(tmp_path, *names))
    assert {row.label for row in images} == {inner.removeprefix("data/").partition("/")[0]}
    (warning,) = images.warnings
    assert f"({folders}) are the splits or classes, give {tmp_path}/{inner}" in warning
    assert len(Images.open(f"{tmp_path}/{inner}").warnings) == (folders == "b")


@pytest.mark.parametrize(
    ("names", "top", "split"),
    [
        (["cats/test/2.jpg", "cats/train/1.jpg", "dogs/test/2.jpg"], "cats", "test"),
        (["images/train/1.jpg", "labels/train/1.txt"], "images", "train"),
        (["data/cats/1.jpg", "data/dogs/Dev_Set/x/1.jpg"], "dogs", "Dev_Set"),
    ],
)
def test_splits_below_classes(tmp_path, names, top, split):
    images = Images.open(make(tmp_path, *names))
    assert {row.split for row in images} == {None}
    (warning,) = images.warnings
    assert warning.startswith(
        f"the images in {top}/{split} have the class {top!r} and no split: if {split!r}"
    )


@pytest.mark.parametrize(
    "names", [["cats/a.jpg"], ["train/cats/a.jpg"], ["cats/a/b.jpg", "dogs/c.jpg"], ["a.jpg"]]
)
def test_layouts_without_a_doubt(tmp_path, names):
    assert Images.open(make(tmp_path, *names)).warnings == []


@pytest.mark.parametrize("prefix", ["data/", "default/", "Data/data/"])
def test_a_folder_data_that_contains_all_others_means_nothing(tmp_path, prefix):
    uri = make(tmp_path, f"{prefix}train/cat/a.jpg", f"{prefix}test/dog/b.jpg", f"{prefix}c.jpg", "README.md")
    assert sorted(rows(uri)) == [
        (f"{prefix}c.jpg", None, None),
        (f"{prefix}test/dog/b.jpg", "test", "dog"),
        (f"{prefix}train/cat/a.jpg", "train", "cat"),
    ]
    assert rows(make(tmp_path / "flat", f"{prefix}a.jpg")) == [(f"{prefix}a.jpg", None, None)]
    assert {row[2] for row in rows(make(tmp_path / "x", f"{prefix}a.jpg", "other/b.jpg"))} == {
        prefix.partition("/")[0],
        "other",
    }


@pytest.mark.parametrize(
    "place", ["data/{}-00000-of-00001.parquet", "{}/0000.parquet", "data/{}/0000.parquet"]
)
def test_parquet_of_hugging_face_has_the_splits_of_its_folders_and_names(tmp_path, place):
    for split, label in (("train", 0), ("test", 1)):
        (tmp_path / place.format(split)).parent.mkdir(parents=True, exist_ok=True)
        hugging_face(tmp_path / place.format(split), [b"x"], [label], ["cat", "dog"])
    assert rows(str(tmp_path)) == [
        (f"{place.format('test')}#0", "test", "dog"),
        (f"{place.format('train')}#0", "train", "cat"),
    ]


def test_junk_is_no_class_and_counts_as_hidden(tmp_path):
    junk = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", ".Trashes", "lost+found")
    junk += ("__MACOSX", ".ipynb_checkpoints", "__pycache__", ".cache")
    images = Images.open(make(tmp_path, "cats/a.jpg", "cats/._a.jpg", *(f"{name}/b.jpg" for name in junk)))
    assert [row.path for row in images] == ["cats/a.jpg"]
    assert (images.hidden, images.passed_over, images.warnings) == (len(junk) + 1, {}, [])


# Metadata


def test_metadata_at_the_top_gives_labels_and_splits(tmp_path):
    make(tmp_path, "0.jpg", "sub/1.jpg", "z.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label,split\n0.jpg,cat,train\n./sub/1.jpg,dog,test\n")
    images = Images.open(str(tmp_path))
    assert rows(str(tmp_path)) == [
        ("0.jpg", "train", "cat"),
        ("sub/1.jpg", "test", "dog"),
        ("z.jpg", None, None),
    ]
    list(images)
    assert images.columns == {"path": "file_name", "label": "label", "split": "split"}
    assert not images.passed_over


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_in_each_split(tmp_path, suffix):
    for split, label in (("train", "cat"), ("test", "dog")):
        make(tmp_path, f"{split}/0.jpg")
        if suffix == "parquet":
            write_parquet(tmp_path / split / "metadata.parquet", file_name=["0.jpg"], label=[label])
        else:
            text = {
                "csv": f"file_name,label\n0.jpg,{label}\n",
                "jsonl": f'{{"file_name":"0.jpg","label":"{label}"}}\n',
            }
            (tmp_path / split / f"metadata.{suffix}").write_text(text[suffix])
    assert rows(str(tmp_path)) == [("test/0.jpg", "test", "dog"), ("train/0.jpg", "train", "cat")]


def test_the_nearest_metadata_counts_and_its_labels_replace_those_of_folders(tmp_path):
    make(tmp_path, "a/0.jpg", "a/b/1.jpg", "a/b/2.jpg", "c/3.jpg")
    (tmp_path / "a/metadata.csv").write_text("file_name,label\n0.jpg,x\nb/1.jpg,never\nb/2.jpg,never\n")
    (tmp_path / "a/b/metadata.csv").write_text("file_name,label\n1.jpg,y\n")
    assert rows(str(tmp_path)) == [
        ("a/0.jpg", None, "x"),
        ("a/b/1.jpg", None, "y"),
        ("a/b/2.jpg", None, None),
        ("c/3.jpg", None, "c"),
    ]


def test_metadata_without_labels_leaves_those_of_the_folders(tmp_path):
    make(tmp_path, "cat/0.jpg", "dog/1.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\ncat/0.jpg,a cat\ndog/1.jpg,a dog\n")
    assert rows(str(tmp_path)) == [("cat/0.jpg", None, "cat"), ("dog/1.jpg", None, "dog")]
    images = Images.open(str(tmp_path), ColumnNames(label="text"))
    assert [row.label for row in images] == ["a cat", "a dog"]


def test_a_row_of_metadata_without_a_file_is_listed_so_that_it_becomes_an_error_row(tmp_path):
    make(tmp_path, "x/0.jpg", "x/old.psd")
    (tmp_path / "x/metadata.csv").write_text("file_name,label\n0.jpg,cat\ngone.jpg,dog\nold.psd,dog\n")
    assert rows(str(tmp_path)) == [
        ("x/0.jpg", None, "cat"), ("x/gone.jpg", None, "dog"), ("x/old.psd", None, "dog"),
    ]  # fmt: skip
    (tmp_path / "x/metadata.csv").write_text("file_name,label\n0,cat\n1,dog\n")
    assert "none of the first 2 paths of the table" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["/etc/x.jpg", "s3://bucket/x.jpg", "../x.jpg", "a/../../x.jpg"])
def test_metadata_reads_nothing_outside_its_folder(tmp_path, name):
    make(tmp_path, "0.jpg")
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n0.jpg,a\n{name},b\n")
    assert "row 2 of the table" in (message := refusal(str(tmp_path)))
    assert f"names a file outside its folder: {name!r}" in message


def test_a_table_that_is_no_metadata_of_images_is_passed_over_with_a_warning(tmp_path):
    make(tmp_path, "cat/0.jpg")
    (tmp_path / "metadata.csv").write_text("id,age\n1,2\n")
    images = Images.open(str(tmp_path))
    assert [row.label for row in images] == ["cat"]
    assert (images.passed_over, images.columns) == ({".csv": 1}, {})
    assert images.warnings == ["metadata.csv gives no labels, because it has no column file_name"]


def test_names_of_columns_that_nothing_has_are_refused(tmp_path):
    uri = make(tmp_path, "cat/0.jpg")
    assert [row.label for row in Images.open(uri, ColumnNames(label="none", split="none"))] == ["cat"]
    with pytest.raises(UserError, match="--label-column breed: there is no table or archive"):
        list(Images.open(uri, ColumnNames(label="breed")))
