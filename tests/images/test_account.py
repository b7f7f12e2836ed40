"""What is understood of the images: their counts, what is refused, and what is warned of."""

from collections import Counter
from pathlib import Path

import pytest

from tlray.cli import summaries
from tlray.core.errors import JobError, UserError
from tlray.core.results import Account
from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.account import LabelError, Tally, check_classes, check_labels, training_classes, warn
from tlray.images.index import Index
from tlray.images.index_writer import IndexWriter, listing_for
from tlray.images.listing import Images

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def tally(*counts: tuple[str | None, str | None, int]) -> Tally:
    counted = Tally()
    for row in counts:
        counted.add(*row)
    return counted


def account(*counts: tuple[str | None, str | None, int], complete: bool = True) -> Account:
    return tally(*counts).account(Images(Folder.open("/nowhere")), complete=complete)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def of_folder(folder: Path) -> Account:
    images, counted = Images.open(folder), Tally()
    for image in images:
        counted.add(image.split, image.label)
    return counted.account(images, complete=True)


def test_the_counts(tmp_path):
    write(
        tmp_path, *(f"{s}/{c}/{i}.png" for s, n in (("train", 3), ("val", 2)) for c in "ab" for i in range(n))
    )
    write(tmp_path, "train/x.png", "train/notes.TXT", "train/a/.DS_Store", "val/a/0.psd", "README")
    result = of_folder(tmp_path)
    assert result.splits == {"train": 7, "validation": 4}
    assert result.classes == {"a": 5, "b": 5}
    assert (result.images, result.unlabelled, result.hidden, result.complete) == (11, 1, 1, True)
    assert (result.passed_over, result.unread) == ({".txt": 1, "(none)": 1}, {".psd": 1})
    assert result.warnings == []
    assert Account.from_json(result.to_json()) == result
    assert summaries.account(result) == [
        "found 11 images: train 7, validation 4; 2 classes: a 5, b 5; 1 without a label",
        "passed over: (none) 1, .txt 1; 1 hidden; 1 .psd are not read: convert them to JPEG or PNG",
    ]


def test_the_account_in_the_terminal():
    many = account(*(("train", f"c{i:02d}", 100) for i in range(12)), complete=False)
    (line,) = summaries.account(many)
    assert line.startswith("found 1,200 images so far: train 1,200; 12 classes: c00 100, c01 100, ")
    assert line.endswith(", c09 100, ...")
    (line, *_) = summaries.account(
        account((None, "a b", 1), (None, "c ", 2), (None, "\u202ed", 3), ("test", "e", 4))
    )
    assert line == ("found 10 images: test 4, without a split 6; 4 classes: a b 1, 'c ' 2, e 4, '\\u202ed' 3")
    assert summaries.account(account((None, None, 1)))[0] == "found 1 image: no labels"


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("cats", "cats ", "'cats' (2 in train) and 'cats ' (1 in test)"),
        ("a b", "a\u00a0 b", r"'a b' (2 in train) and 'a\xa0 b' (1 in test)"),
        ("cats", "\ufeffcats", r"'cats' (2 in train) and '\ufeffcats' (1 in test)"),
        (COMPOSED, DECOMPOSED, r"'caf\xe9' (2 in train) and 'cafe\u0301' (1 in test)"),
    ],
)
def test_labels_that_only_look_different_are_refused(first, second, names):
    with pytest.raises(LabelError) as error:
        tally(("train", first, 2), ("train", "other", 1), ("test", second, 1))
    assert f"the labels {names} differ only by white space or Unicode form" in str(error.value)


@pytest.mark.parametrize(
    "labels",
    [
        *(("Cats", "cats"), ("True", "true"), ("polar bear", "polar_bear"), ("Polar-Bear", "polarbear")),
        *(("1", "1.0"), ("007", "7"), ("\uff21", "A")),
    ],
)
@pytest.mark.parametrize("complete", [False, True])
def test_labels_that_are_almost_the_same_are_warned_of(labels, complete):
    (line,) = account(*((None, label, 4) for label in labels), complete=complete).warnings
    first, second = (f"{label!r} (4 images)" for label in sorted(labels))
    assert line.startswith(f"the classes {first} and {second} differ only by case, by spaces or hyphens, ")


@pytest.mark.parametrize("labels", [("1", "10"), ("0.5", "5"), ("2.0.1", "2"), ("cat", "cats"), ("é", "e")])
def test_labels_that_differ_are_not_warned_of(labels):
    assert account(*((None, label, 4) for label in labels)).warnings == []


def test_of_many_pairs_three_are_shown():
    lines = account(
        *((None, case(f"class{i}"), 1) for i in range(9) for case in (str.lower, str.upper))
    ).warnings
    assert len(lines) == 4
    assert lines[-1].startswith("6 more pairs of classes")


@pytest.mark.parametrize(
    ("counts", "lines"),
    [
        ([(None, None, 3)], ["no image has a label, which `tlray fit` needs"]),
        ([("train", "a", 3)], ["all labelled images are of one class, 'a'"]),
        (
            [("train", "a", 3), ("train", "b", 3), ("validation", None, 3)],
            ["the 3 validation images have no labels: put them into validation/CLASS/, or hold out training"],
        ),
        (
            [("train", "a", 3), ("train", "b", 3), ("test", None, 1)],
            ["the 1 test image has no label: put them into test/CLASS/"],
        ),
        (
            [("train", "a", 3), ("train", "b", 3), ("test", "b", 1), ("test", "c", 2)],
            ["the class 'c' has 2 test images and no training images: `tlray evaluate` refuses classes"],
        ),
        (
            [*(("train", label, 3) for label in "abcde"), ("test", "b", 1), ("test", "c", 2)],
            ["only 2 of the 5 training classes have test images"],
        ),
        ([("validation", "a", 3), ("test", "b", 3)], []),
        ([("train", "a", 3), ("train", "b", 3), ("validation", "a", 1), ("test", "b", 1)], []),
        (
            [("train", "a", 3), ("train", "b", 3), ("test", "b", 1), ("test", "c", 1)],
            ["the class 'c' has 1 test image and no training images"],
        ),
    ],
)
def test_warnings_of_whole_listings(counts, lines):
    warnings = account(*counts).warnings
    assert len(warnings) == len(lines)
    assert [warning.startswith(line) for warning, line in zip(warnings, lines, strict=True)] == [True] * len(
        lines
    )
    assert account(*counts, complete=False).warnings == []


def test_a_class_only_in_validation_is_refused():
    counts = tally(("train", "a", 3), ("validation", "a", 1), ("validation", "b", 2), ("test", "c", 2))
    with pytest.raises(LabelError, match="the class 'b' has 2 validation images and no training images: add"):
        counts.account(Images(Folder.open("/nowhere")), complete=True)
    with pytest.raises(LabelError, match="the class 'c' has 2 test images and no training images"):
        check_classes(counts.counts, "test")
    assert training_classes(counts.counts) == ["a"]
    many = tally(("train", "a", 3), *(("validation", label, 2) for label in "bcdef"))
    with pytest.raises(LabelError, match=r"the 5 classes 'b', 'c', 'd', ... have 10 validation images"):
        check_classes(many.counts, "validation")
    check_classes(tally(("train", None, 3), ("validation", "b", 2)).counts, "validation")


def test_a_split_without_labels():
    counts = Counter({("train", "a"): 1, ("train", None): 5, ("validation", None): 3})
    with pytest.raises(LabelError, match=r"the 3 validation images have no labels.*--validation 0.2"):
        check_labels(counts, "validation")
    check_labels(counts, "train")
    check_labels(counts, "test")


def test_a_class_of_unread_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(filetypes, "reads_heic", lambda: False)
    write(tmp_path, "train/a/0.png", "train/b/0.heic", "train/b/1.heic", "test/b/0.png")
    with pytest.raises(
        LabelError, match=r"the class 'b' of the split train would be empty.* 2 \.heic files.*tlray\[heic\]"
    ):
        of_folder(tmp_path)
    write(tmp_path, "train/b/2.png")
    assert of_folder(tmp_path).unread == {".heic": 2}
    # The labels of metadata replace those of folders.
    photos = write(tmp_path / "photos", "all/0.png", "all/1.png", "all/2.heic", "all/3.heic")
    names = {"0.png": "cat", "1.png": "dog", "2.heic": "dog"}
    text = "".join(f"all/{name},{label}\n" for name, label in names.items())
    (photos / "metadata.csv").write_text(f"file_name,label\n{text}")
    result = of_folder(photos)
    assert (result.classes, result.unread) == ({"cat": 1, "dog": 2}, {".heic": 2})
    # After --split, the images of a class may be in any split.
    images, counted = (
        Images.open(write(tmp_path / "flat", "a/0.png", "b/0.heic", "b/0.png")).assign(0.5, 0),
        Tally(),
    )
    for image in images:
        counted.add(image.split, image.label)
    assert counted.account(images, complete=True).unread == {".heic": 1}


def test_python_gets_warnings(recwarn):
    warn(account((None, "Cats", 1), (None, "cats", 5)))
    (warning,) = recwarn
    assert str(warning.message).startswith(
        "the classes 'Cats' (1 image) and 'cats' (5 images) differ only by case"
    )


# In an index

JOB = {"source": "/images"}


def start(folder: Folder, images: Images, **options: bool) -> IndexWriter:
    listing = listing_for(folder, images)
    return IndexWriter.start(folder, listing, 1, JOB, 128, source=images, **options)


def test_the_index_keeps_the_account(tmp_path, folder):
    """Pieces of it are counted as they are written; a later run has it although it lists nothing."""
    photos = write(tmp_path / "photos", *(f"a/{i:03d}.png" for i in range(600)), "a/x.txt")
    writer = start(folder, Images.open(photos))
    first = writer.account()
    assert (first.images, first.complete, first.passed_over) == (64, False, {})
    assert "so far" in summaries.account(first)[0]
    write(photos, "b/0.png", "c/0.psd", "c/0.png")
    next(writer.grow())
    assert writer.account().images == 64 + 512
    writer.stop()
    # The listing goes on where it was, with all images of the earlier run.
    writer = start(folder, Images.open(photos))
    writer.finish()
    whole = writer.account()
    assert (whole.images, whole.complete, whole.classes) == (602, True, {"a": 600, "b": 1, "c": 1})
    assert (whole.passed_over, whole.unread) == ({".txt": 1}, {".psd": 1})
    assert start(folder, Images.open(photos)).account() == whole == Index.open(folder).account
    write(photos, "b/1.png", "b/y.txt")
    extended = start(folder, Images.open(photos), extend=True)
    extended.finish()
    assert (extended.account().images, extended.account().passed_over) == (603, {".txt": 2})
    assert Index.open(folder).account == extended.account()


def test_wrong_labels_are_refused_as_soon_as_they_are_listed(tmp_path, folder):
    photos = write(tmp_path / "photos", *(f"a/{i:03d}.png" for i in range(80)), "b/0.png", "b /0.png")
    writer = start(folder, Images.open(photos))
    with pytest.raises(
        JobError, match=f"differ only by white space.*; then remove {folder.uri}, and run it again$"
    ):
        writer.finish()
    assert not writer.index.complete
    with pytest.raises(UserError, match="differ only by white space"):
        start(Folder.open(str(tmp_path / "small")), Images.open(write(tmp_path / "p", "b/0.png", "b /0.png")))
    assert not (tmp_path / "small").exists()
