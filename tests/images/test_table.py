"""Tables of image paths: which columns mean what, how their text is read, and what is refused."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.archives import write_parquet
from tests.support.listings import paths, refusal, rows
from tlray.core.errors import UserError
from tlray.images.conventions import ColumnNames
from tlray.images.listing import Images, Listed


def write_csv(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> str:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(tmp_path / name)


@pytest.fixture
def exist(monkeypatch) -> None:
    """Every image exists."""
    monkeypatch.setattr("tlray.images.table.any_exists", lambda root, paths: True)


def test_a_table_is_listed_as_it_stands(tmp_path, exist):
    given = ["b.jpg", "a.jpg", "/abs/c.jpg", "s3://bucket/d.jpg", "e.tfrecord"]
    splits = ["val", "Valid", "TEST", None, ""]
    uri = write_parquet(
        tmp_path / "t.parquet", path=given, label=["x", None, "", "y", "x"], split=splits, size=[[3]] * 5
    )
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
    assert not images.passed_over


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
def test_labels_of_parquet_become_text(tmp_path, exist, labels, expected):
    uri = write_parquet(tmp_path / "t.parquet", path=["a.jpg", "b.jpg"], label=labels)
    assert [row.label for row in Images.open(uri)] == expected


def test_csv_keeps_what_is_written(tmp_path, exist):
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


def test_a_csv_whose_other_columns_change_their_kind_late(tmp_path, exist):
    lines = "".join(f"{i:040}.jpg,{i if i < 60_000 else 'text'}\n" for i in range(61_000))
    uri = write_csv(tmp_path, "path,n\n" + lines)
    assert paths(uri) == [f"{i:040}.jpg" for i in range(61_000)]


def test_newlines_in_a_csv_of_several_blocks(tmp_path, exist):
    given = [f"{i}\n{'x' * 100}\n.jpg" for i in range(12_000)]
    assert paths(write_csv(tmp_path, "path\n" + "".join(f'"{path}"\n' for path in given))) == given


def test_a_parquet_file_of_many_row_groups_keeps_its_order(tmp_path, exist):
    given = [f"{i * 7919 % 5000}.jpg" for i in range(5000)]
    assert paths(write_parquet(tmp_path / "t.parquet", 100, path=given)) == given


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "foto,label\na.jpg,x\n",
            "needs a column 'path'; its columns are ['foto', 'label']: add --path-column",
        ),
        ("path,path\na.jpg,b.jpg\n", "multiple columns named path"),
        ("path,label\n,x\n", "row 1 of the table"),
        ("path\na.jpg\nb.jpg\na.jpg\n", "has the path 'a.jpg' twice"),
        ("path,split\na.jpg,train\nb.jpg,cats\n", "row 2 of the table"),
        (
            "path,split\na.jpg,3\n",
            "split '3' in its column 'split': expected train, validation, test, or nothing",
        ),
        ("path,label\n", "has no rows"),
        ("path\na.jpg\nb.j" + "\0" * 99, "row 2 of the table"),
        ("path,label\na.jpg,x\nb.jpg,x" + "\0" * 99, "row 2 of the table"),
        ("", "Empty CSV"),
        ("path,label\na.jpg\n", "Expected 2 columns, got 1"),
        ('path\n"a\nb","c"\n', "Expected 1 columns, got 2"),
        (b"path,label\ncaf\xe9.jpg,x\n", "its text is not UTF-8; save it as UTF-8"),
        (b"path,caf\xe9\na.jpg,x\n", "its text is not UTF-8; save it as UTF-8"),
        ("path,label\na.jpg,x\n".encode("utf-16"), "its text is not UTF-8; save it as UTF-8"),
        ("path,label\na.jpg,x\n".encode("utf-16-le"), "its text is not UTF-8; save it as UTF-8"),
        ({"id": ["a.jpg"]}, "needs a column 'path'; its columns are ['id']"),
        ({"path": ["a.jpg", None]}, "row 2 of the table"),
        ({"path": [*"abcda"]}, "has the path 'a' twice"),
        ({"path": ["a.jpg"], "label": [[1]]}, "cannot read the table"),
        ({"path": pa.array([], pa.string())}, "has no rows"),
    ],
)
def test_tables_that_are_refused_at_once(tmp_path, exist, table, expected):
    if isinstance(table, dict):
        uri = write_parquet(tmp_path / "t.parquet", **table)
    else:
        uri = write_csv(tmp_path, table)
    with pytest.raises(UserError) as caught:
        Images.open(uri)
    message = str(caught.value)
    assert expected in message
    assert uri in message
    assert "dataset" not in message
    assert len(message.splitlines()) == 1


def test_a_table_in_a_folder_with_an_odd_name(tmp_path, exist):
    (tmp_path / "a?b#c%20 d\\é").mkdir()
    uri = write_csv(tmp_path / "a?b#c%20 d\\é", "path\na.jpg\n")
    assert paths(uri) == ["a.jpg"]


def test_paths_with_the_same_hash_are_not_the_same_path(tmp_path, exist, monkeypatch):
    uri = write_parquet(tmp_path / "t.parquet", path=["a.jpg", "b.jpg", "c.jpg"])
    monkeypatch.setattr("tlray.images.archives.base.hash", lambda _: 1, raising=False)
    assert paths(uri) == ["a.jpg", "b.jpg", "c.jpg"]


# Columns


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("path, label\ncat.jpg,cats\n", {"path": "path", "label": " label"}),
        ("path, label, set\ncat.jpg, cats, Testing\n", {"path": "path", "label": " label", "split": " set"}),
        ("Path,Label\ncat.jpg,cats\n", {"path": "Path", "label": "Label"}),
        ("path,class\ncat.jpg,cats\n", {"path": "path", "label": "class"}),
        ("path,CLASS_NAME,Split\ncat.jpg,cats,test_set\n",
         {"path": "path", "label": "CLASS_NAME", "split": "Split"}),
        ("file_name,label\ncat.jpg,cats\n", {"path": "file_name", "label": "label"}),
        # As Kaggle's tables are.
        ("class id,filepaths,labels,data set\n7,cat.jpg,cats,test\n",
         {"path": "filepaths", "label": "labels", "split": "data set"}),
        ("image_id,label\ncat.jpg,cats\n", {"path": "image_id", "label": "label"}),
        ("path;category;subset\ncat.jpg;cats;holdout\n",
         {"path": "path", "label": "category", "split": "subset"}),
        ("filename\ttarget\ncat.jpg\tcats\n", {"path": "filename", "label": "target"}),
        (",path,label\n0,cat.jpg,cats\n", {"path": "path", "label": "label"}),
        ('"Image Path","Species"\r\n"cat.jpg","cats"\r\n', {"path": "Image Path", "label": "Species"}),
    ],
)  # fmt: skip
def test_the_usual_names_of_columns_in_any_spelling(tmp_path, text, columns):
    (tmp_path / "cat.jpg").touch()
    images = Images.open(write_csv(tmp_path, text))
    assert images.columns == columns
    expected = ("cat.jpg", "test" if "split" in columns else None, "cats")
    assert [(row.path, row.split, row.label) for row in images] == [expected]
    assert images.warnings == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "path\tlabel\na,b.jpg\t007\n"),
        ("t.jsonl", '{"file_name": "a,b.jpg", "label": "007"}\n'),
        ("T.JSONL", '{"label": "007", "image": "a,b.jpg", "objects": {"bbox": [[1, 2]]}}\n'),
    ],
)
def test_tables_of_other_formats(tmp_path, name, text):
    (tmp_path / "a,b.jpg").touch()
    assert rows(write_csv(tmp_path, text, name)) == [("a,b.jpg", None, "007")]


def test_integers_in_a_parquet_table_are_labels(tmp_path, exist):
    uri = write_parquet(tmp_path / "t.parquet", image_path=["a.jpg"], category=[7], categories=[[1, 2]])
    assert rows(uri) == [("a.jpg", None, "7")]


def test_of_two_columns_that_fit_the_better_name_counts_and_a_warning_names_the_other(tmp_path, exist):
    uri = write_csv(tmp_path, "img,class,label,path,partition,set\nx,1,cats,a.jpg,x,val\n")
    images = Images.open(uri)
    assert images.columns == {"path": "path", "label": "label", "split": "set"}
    assert [line.partition(":")[0] for line in images.warnings] == [
        "the labels are read from the column label, but class may contain them too",
        "the splits are read from the column set, but partition may contain them too",
    ]
    assert rows(uri) == [("a.jpg", "validation", "cats")]


def test_of_two_spellings_of_a_column_the_plain_one_counts(tmp_path, exist):
    images = Images.open(write_csv(tmp_path, "path,Label,label\na.jpg,x,y\n"))
    assert ([row.label for row in images], images.columns["label"]) == (["y"], "label")
    assert "read from the column label, but Label may contain them too" in images.warnings[0]


def test_columns_that_the_user_names(tmp_path, exist):
    uri = write_csv(tmp_path, "path,label,split,foto,breed ,fold\na.jpg,cats,test,b.jpg,pug,train\n")
    images = Images.open(uri, ColumnNames(path="foto", label="breed", split="fold"))
    assert [(row.path, row.split, row.label) for row in images] == [("b.jpg", "train", "pug")]
    images = Images.open(uri, ColumnNames(label="none", split="none"))
    assert [(row.path, row.split, row.label) for row in images] == [("a.jpg", None, None)]
    with pytest.raises(UserError, match=r"--label-column dog: .* has only the columns path, label, split"):
        Images.open(uri, ColumnNames(label="dog"))


def test_a_table_without_a_label_says_how_to_name_it(tmp_path, exist):
    images = Images.open(write_csv(tmp_path, "path,breed,age\na.jpg,pug,3\n"))
    assert images.warnings == [
        "no column of t.csv is named label, class or the like: if one of breed, age is the label, "
        "add --label-column breed"
    ]


# Paths


def test_paths_are_compared_as_they_are_read(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("0.jpg", "x/1.jpg"):
        (tmp_path / name).touch()
    spellings = f"./0.jpg\nx//1.jpg\n{tmp_path}/./x/1.jpg\n../{tmp_path.name}/0.jpg\ns3://b/a//b.jpg\n"
    assert paths(write_csv(tmp_path, f"path\n{spellings}")) == [
        *("0.jpg", "x/1.jpg", f"{tmp_path}/x/1.jpg", f"../{tmp_path.name}/0.jpg", "s3://b/a//b.jpg"),
    ]
    for twice in ("0.jpg\n./0.jpg\n", "x/1.jpg\nx/./1.jpg\n", ".//x//1.jpg\nx/1.jpg\n"):
        assert "twice: remove one" in refusal(write_csv(tmp_path, f"path\n{twice}"))


def test_backslashes_are_letters_like_any_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.jpg").touch()
    uri = write_csv(tmp_path, "path\na\\b.jpg\n")
    assert "exists, e.g. 'a\\\\b.jpg':\nexpected full names with slashes" in refusal(uri)
    (tmp_path / "a\\b.jpg").touch()
    assert paths(uri) == ["a\\b.jpg"]


def test_a_table_whose_first_hundred_images_are_missing(tmp_path):
    many = "".join(f"{number}.jpg\n" for number in range(101))
    uri = write_csv(tmp_path, f"path\n{many}")
    (tmp_path / "100.jpg").touch()
    message = refusal(uri)
    assert f"none of the first 100 paths of the table {uri!r} exists, e.g. '0.jpg':" in message
    assert "absolute or relative to its folder" in message
    (tmp_path / "99.jpg").touch()
    assert len(paths(uri)) == 101


@pytest.mark.parametrize("path", ["a.tar/x.jpg", "a.parquet#7", "{}/a.tar/x.jpg", "file://{}/a.tar"])
def test_an_image_whose_archive_exists_is_not_missing(tmp_path, path):
    for name in ("a.tar", "a.parquet"):
        (tmp_path / name).touch()
    path = path.format(tmp_path)
    assert paths(write_csv(tmp_path, f"path\n{path}\n")) == [path]


@pytest.mark.parametrize("path", ["none://x/a.jpg", "C:\\images\\a.jpg", "x.tar/a.jpg"])
def test_paths_that_nothing_opens_are_missing(tmp_path, path):
    assert "none of the first 1 paths" in refusal(write_parquet(tmp_path / "t.parquet", path=[path]))
