"""The report: its numbers, its pictures, and a page that no file name can turn against its reader."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from tlray.core.storage import Folder
from tlray.evaluation import plots, scores
from tlray.evaluation.report import write_report
from tlray.evaluation.scores import ClassScore, Evaluation, Mistake
from tlray.evaluation.summary import escaped, percent, summary

HOSTILE = "<script>alert('x')</script>"
JPEG = b"\xff\xd8 thumbnail \xff\xd9"


def confusion_plot(found: Evaluation) -> bytes:
    return plots.confusion(found.classes, found.confusion_matrix)


def history(epochs: int, names=("loss", "accuracy", "val_loss", "val_accuracy")) -> list[dict[str, float]]:
    scale = {"loss": 1, "accuracy": -0.3, "val_loss": 1.2, "val_accuracy": -0.4}
    return [
        {"epoch": n, **{name: ("accuracy" in name) + scale[name] / n for name in names}}
        for n in range(1, epochs + 1)
    ]


def stage(epochs: int = 30, **changes) -> dict[str, Any]:
    """As a model's manifest has it."""
    rows = changes.get("history", history(epochs))
    values = {
        "command": "fit",
        "head": "dense-256",
        "from": None,
        "augment": None,
        "views": None,
        "epochs": epochs,
        "stopped_epoch": None,
        "kept_epoch": epochs,
        "monitor": "val_loss",
        "trainable_tensors": 4,
        "tensors": 30,
        "trainable_parameters": 2097665,
        "metrics": {name: value for name, value in rows[-1].items() if name != "epoch"} if rows else {},
        "history": rows,
        "seconds": 12.3,
    }
    return values | changes


def evaluation(classes=("cats", "dogs"), matrix=((486, 14), (20, 480)), **changes) -> Evaluation:
    matrix = np.asarray(matrix)
    right = np.diag(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / matrix.sum(0), right / matrix.sum(1)
        f1 = 2 * precision * recall / (precision + recall)
    values = {
        "model": "/jobs/vgg16/model",
        "data": "/data/cats-dogs",
        "split": "test",
        "images": int(matrix.sum()) + 5,
        "rows": int(matrix.sum()) + 2,
        "errors": 3,
        "unlabelled": 2,
        "loss": 0.0912,
        "accuracy": float(right.sum() / matrix.sum()) if matrix.sum() else math.nan,
        "classes": tuple(classes),
        "confusion_matrix": tuple(tuple(map(int, row)) for row in matrix),
        "scores": tuple(
            ClassScore(
                label=name,
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(matrix[index].sum()),
            )
            for index, name in enumerate(classes)
        ),
        "mistakes": (
            Mistake(path="cats/1.jpg", label="cats", predicted="dogs", probability=0.9996, thumbnail=JPEG),
            Mistake(path="dogs/2.jpg", label="dogs", predicted="cats", probability=0.75),
        ),
        "stages": (stage(3),),  # too few epochs to be smoothed: pictures take time
        "provenance": {"backbone": "vgg16", "training": {"learning_rate": 2e-5}},
        "seconds": 12.34,
    }
    return Evaluation(**(values | changes))


def many(count: int, **changes) -> Evaluation:
    """Every class is right 8 times of 10; class n is taken for n + 1 and n + 2 once each."""
    one = np.eye(count, dtype=int)
    matrix = 8 * one + np.roll(one, 1, axis=1) + np.roll(one, 2, axis=1)
    return evaluation([f"class-{n}" for n in range(count)], matrix, **changes)


@pytest.fixture
def written(tmp_path):
    """Writes the report of an evaluation; gives the files' bytes by name."""

    def write(found: Evaluation) -> dict[str, bytes]:
        names = write_report(found, Folder.open(str(tmp_path)))
        assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
        return {name: (tmp_path / name).read_bytes() for name in names}

    return write


class Page(HTMLParser):
    """The elements, the visible text and the tables of a page."""

    def __init__(self, page: bytes):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[list[str]] | None = None
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.open = self.tables.setdefault(dict(attrs).get("class", ""), [])
        elif tag == "tr":
            self.open.append([])
        elif tag in ("th", "td"):
            self.open[-1].append("")
        elif tag in ("span", "br"):
            self.handle_data(" ")

    def handle_endtag(self, tag):
        if tag == "table":
            self.open = None

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1]:
            self.open[-1][-1] += data

    def stages(self) -> list[list[str]]:
        """The cells of the table of stages, below its head of two rows."""
        return [[" ".join(cell.split()) for cell in row] for row in self.tables["stages"][2:]]

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


# report.json


def test_json_has_the_numbers(written):
    found = evaluation()
    content = json.loads(written(found)["report.json"])
    assert content == found.to_json()
    assert content["images"] == 1005
    assert content["errors"] == 3
    assert content["evaluated"] == 1000
    assert content["loss"] == 0.0912
    assert content["accuracy"] == 0.966
    assert content["classes"] == ["cats", "dogs"]
    assert content["confusion_matrix"] == [[486, 14], [20, 480]]
    assert content["scores"][1]["label"] == "dogs"
    assert content["scores"][1]["recall"] == 0.96
    assert content["scores"][1]["support"] == 500
    assert content["mistakes"][0] == {
        "path": "cats/1.jpg",
        "label": "cats",
        "predicted": "dogs",
        "probability": 0.9996,
    }
    assert content["stages"] == [stage(3)]
    assert content["stages"][0]["history"][2]["epoch"] == 3
    assert content["provenance"]["training"] == {"learning_rate": 2e-5}
    assert set(content) >= {field.name for field in dataclasses.fields(Evaluation)}


def test_json_has_null_for_what_is_no_number_and_plain_types_for_numpy(written):
    found = evaluation(
        loss=math.nan,
        stages=(stage(history=[{"epoch": 1, "loss": math.inf, "accuracy": 0.5}]),),
        provenance={"rate": np.float32(0.5), "shape": np.array([4, 4]), "bad": [math.nan], 3: {"x": Folder}},
    )
    raw = written(found)["report.json"]
    content = json.loads(raw, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert content["loss"] is None
    assert content["stages"][0]["history"] == [{"epoch": 1, "loss": None, "accuracy": 0.5}]
    assert content["stages"][0]["metrics"]["loss"] is None
    assert content["provenance"] == {"rate": 0.5, "shape": [4, 4], "bad": [None], "3": {"x": str(Folder)}}


def test_json_keeps_names_exactly_even_those_that_are_no_utf8(written):
    names = ["猫\n\u202e", 'a"b\\']
    mistakes = (Mistake(path="x/\udce9.jpg", label=names[0], predicted=names[1], probability=1.0),)
    content = json.loads(written(evaluation(names, mistakes=mistakes))["report.json"])
    assert content["classes"] == names
    assert content["mistakes"][0]["path"] == "x/\udce9.jpg"


# Numbers


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(966, 1000, 0.9529, 0.9756), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_interval_is_wilson(right, count, low, high):
    interval = evaluation(matrix=[[right, count - right], [0, 0]]).accuracy_interval
    assert interval == pytest.approx((low, high), abs=5e-5)
    assert 0 <= interval[0] <= interval[1] <= 1


def test_confusions_and_weakest_come_worst_first():
    found = evaluation("abc", [[5, 3, 2], [0, 9, 4], [0, 4, 6]])
    assert found.confusions() == [(4, 10, "c", "b"), (4, 13, "b", "c"), (3, 10, "a", "b"), (2, 10, "a", "c")]
    assert [score.label for score in found.weakest(2)] == ["c", "b"]


def test_a_class_never_predicted_is_among_the_weakest_and_an_absent_one_is_not():
    found = evaluation("abc", [[9, 0, 1], [3, 0, 0], [0, 0, 0]])
    assert [score.label for score in found.weakest()] == ["b", "a"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.0 %"), (0.99996, "99.9 %"), (0.966, "96.6 %"), (0.0, "0.0 %"), (math.nan, "-")],
)
def test_only_the_whole_is_100_percent(share, text):
    assert percent(share) == text


# The pictures


@pytest.mark.parametrize("count", [1, 2, 20, 21, 30, 200])
def test_confusion_picture_shows_the_diagonal(count):
    image = pixels(confusion_plot(many(count) if count > 2 else evaluation("ab"[:count], np.eye(count))))
    assert max(image.shape) < 2500
    image = image[:, : int(image.shape[1] * (0.85 if count > 20 else 1))]  # without the colour bar
    blue = (image.sum(axis=2) < 350) & (image[..., 2] > image[..., 0].astype(int) + 40)
    rows, columns = np.nonzero(blue)
    assert len(rows) > 500
    if count > 2:
        assert np.corrcoef(rows, columns)[0, 1] > 0.9


def test_confusion_picture_depends_on_the_numbers():
    one, other = (
        confusion_plot(evaluation(matrix=matrix)) for matrix in ([[9, 1], [1, 9]], [[8, 2], [1, 9]])
    )
    assert one != other


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{$", "猫", "a\nb", "x" * 500, "_", "العربية"])
def test_confusion_picture_bears_any_name(name):
    pixels(confusion_plot(evaluation([name, "dogs"])))


def test_names_without_glyphs_are_numbered():
    assert confusion_plot(evaluation(["猫", "犬"])) == confusion_plot(evaluation(["狐", "狼"]))
    assert confusion_plot(evaluation(["a", "b"])) != confusion_plot(evaluation(["c", "d"]))


def blue_stretches(png: bytes) -> int:
    """Over how many separate stretches of the picture's width there is anything of validation."""
    image = pixels(png).astype(int)
    blue = ((image[..., 2] - image[..., 0]) > 120).any(axis=0)
    return int((np.diff(blue.astype(int)) == 1).sum())


@pytest.mark.parametrize("smooth", [False, True])
def test_curves_show_training_as_points_and_validation_as_a_line(smooth):
    rows = history(30, ["val_loss", "val_accuracy"])  # alone, so that no point lies on the line
    assert blue_stretches(plots.curves(rows, smooth=smooth)) == 2  # an unbroken line in each of the two plots
    assert blue_stretches(plots.curves(rows[:1], smooth=smooth)) == 4  # in each, a point and the legend
    assert blue_stretches(plots.curves(history(30, ["loss", "accuracy"]), smooth=smooth)) == 0


@pytest.mark.parametrize("epochs", [1, 30, 100, 150])
def test_points_stay_apart(epochs):
    flat = [{"epoch": n, "loss": 0.0, "accuracy": 1.0} for n in range(1, epochs + 1)]
    image = pixels(plots.curves(flat)).astype(int)
    orange = (image[..., 0] - image[..., 2]) > 95  # more than half of the color
    fullest = max(orange, key=np.count_nonzero)  # of the rows of pixels: through the middle of the points
    assert np.count_nonzero(np.diff(fullest.astype(int)) == 1) == 2 * epochs


def test_a_loss_that_was_not_finite_is_left_out_of_the_curves():
    rows = history(30, ["val_loss", "val_accuracy"])
    gap = [*rows[:10], rows[10] | {"val_loss": None, "val_accuracy": math.inf}, *rows[11:]]
    assert blue_stretches(plots.curves(rows)) == 2
    assert blue_stretches(plots.curves(gap)) == 4
    assert blue_stretches(plots.curves(gap, smooth=True)) == 4


def test_smoothing_is_the_published_one():
    values = [1.0, 0.0, 0.5, 1.0]
    # 1; 0.8 x 1 + 0.2 x 0; 0.8 x 0.8 + 0.2 x 0.5; 0.8 x 0.74 + 0.2 x 1
    assert plots.smoothed(values) == pytest.approx([1.0, 0.8, 0.74, 0.792], abs=1e-12)
    assert plots.smoothed([]) == []


def test_smoothing_goes_on_after_a_value_that_is_missing():
    found = plots.smoothed([math.nan, 1.0, math.inf, 0.0])
    assert found == pytest.approx([math.nan, 1.0, math.nan, 0.8], abs=1e-12, nan_ok=True)


def test_curves_smoothed_are_those_of_the_smoothed_numbers():
    rows = [row | {"loss": row["epoch"] % 2, "val_loss": row["epoch"] % 3} for row in history(20)]
    columns = {name: plots.smoothed([row[name] for row in rows]) for name in rows[0] if name != "epoch"}
    by_hand = [{"epoch": n, **{name: columns[name][n - 1] for name in columns}} for n in range(1, 21)]

    def other_pixels(history) -> int:
        """How many differ below the titles, and not only by the choice of the palette."""
        one, other = (pixels(png)[60:].astype(int) for png in (smooth, plots.curves(history)))
        return int((np.abs(one - other).max(axis=2) > 64).sum())

    smooth = plots.curves(rows, smooth=True)
    assert other_pixels(by_hand) == 0
    assert other_pixels(rows) > 1000


def test_curves_of_a_stage_too_short_to_be_smoothed(written):
    names = {"report.json", "confusion_matrix.png", "index.html", "curves.png"}
    files = written(evaluation(stages=(stage(9),)))
    assert set(files) == names
    assert "smoothed" not in Page(files["index.html"]).text
    files = written(evaluation(stages=(stage(10),)))
    assert set(files) == {*names, "curves_smoothed.png"}
    assert "exponential moving average with factor 0.8" in Page(files["index.html"]).text


def test_the_last_stage_has_the_plain_names(written):
    stages = (stage(12), stage(5), stage(30))
    files = written(evaluation(stages=stages))
    pictures = {name: data for name, data in files.items() if name.startswith("curves")}
    assert pictures == {
        "curves_1.png": plots.curves(history(12)),
        "curves_1_smoothed.png": plots.curves(history(12), smooth=True),
        "curves_2.png": plots.curves(history(5)),
        "curves.png": plots.curves(history(30)),
        "curves_smoothed.png": plots.curves(history(30), smooth=True),
    }


def test_stale_curves_are_removed_and_nothing_else(written, tmp_path):
    written(evaluation(stages=(stage(12), stage(3), stage(12))))
    # `written` checks that just the files of the new report are there.
    assert "curves.png" in written(evaluation())
    files = written(evaluation(stages=()))
    assert set(files) == {"report.json", "confusion_matrix.png", "index.html"}
    assert "Training" not in Page(files["index.html"]).text
    strangers = {"curves.csv", "curves_mine.png", "my_curves.png", "curves_1_smoothed.png.bak"}
    for name in strangers:
        (tmp_path / name).write_bytes(b"")
    write_report(evaluation(stages=()), Folder.open(str(tmp_path)))
    assert strangers <= {path.name for path in tmp_path.iterdir()}


# The page


@pytest.mark.parametrize("found", [evaluation(), many(30), evaluation(stages=(), mistakes=())])
def test_page_needs_nothing_from_outside(written, found):
    page = Page(written(found)["index.html"])
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "a"})
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    style = page.text[: page.text.index(".plot")]
    assert "url(" not in style
    assert "@import" not in style
    policies = [meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta]
    assert policies
    assert policies[0].startswith("default-src 'none'; img-src data:;")


def test_page_shows_the_written_pictures(written):
    files = written(evaluation(stages=(stage(),)))
    shown = [
        base64.b64decode(image["src"].partition("base64,")[2])
        for image in Page(files["index.html"]).attributes("img")
    ]
    assert shown == [
        *(files[name] for name in ("confusion_matrix.png", "curves.png", "curves_smoothed.png")),
        JPEG,
    ]


def test_page_tells_the_result(written):
    page = Page(written(evaluation(stages=(stage(),)))["index.html"])
    text = " ".join(page.text.split())
    for part in (
        "model on cats-dogs",
        "966 of 1,000 images were classified correctly",
        "between 95.3 % and 97.6 %",
        "0.0912",
        "2 of 34 wrong answers",
        "99.9 %",
        "no picture",
        "learning_rate",
        "smoothed, as an exponential moving average",
    ):
        assert part in text, part
    assert all(image["alt"] for image in page.attributes("img"))
    assert all(head.get("scope") for head in page.attributes("th"))


def test_page_tells_the_stages(written):
    stages = (
        stage(30, metrics={"loss": 0.25, "accuracy": 0.9, "val_loss": 0.26, "val_accuracy": 0.895}),
        stage(
            **{"head": "plain", "augment": "rotation=40,flip", "command": "finetune", "from": "input"},
            metrics={"loss": 0.2, "accuracy": 0.94, "val_loss": 0.1, "val_accuracy": 0.96},
        ),
        stage(
            100,
            **{"head": "plain", "augment": "flip", "views": 4, "kept_epoch": 72, "from": "block5_conv1"},
            **{"trainable_tensors": 10, "trainable_parameters": 9177089},
            metrics={"loss": 0.01, "accuracy": 1.0, "val_loss": 0.08, "val_accuracy": 0.975},
        ),
    )
    page = Page(written(evaluation(stages=stages))["index.html"])
    two = "4 of 30 2,097,665 parameters"
    assert [row[:3] for row in page.stages()] == [
        ["1", "head only with dense-256", two],
        ["2", "everything with plain", two],
        ["3", "from block5_conv1 on with plain", "10 of 30 9,177,089 parameters"],
    ]
    assert [row[3:6] for row in page.stages()] == [
        ["none", "30", "30"],
        ["rotation=40, flip new views in each epoch", "30", "30"],
        ["flip 4 views of each image", "100", "72 best val_loss"],
    ]
    assert [row[6:] for row in page.stages()] == [
        ["90.0 %", "0.2500", "89.5 %", "0.2600"],
        ["94.0 %", "0.2000", "96.0 %", "0.1000"],
        ["100.0 %", "0.0100", "97.5 %", "0.0800"],
    ]
    text = " ".join(page.text.split())
    assert "In 3 stages, oldest first" in text
    assert [part[:1] for part in text.split("Stage ")[1:]] == ["1", "2", "3"]
    alts = [image["alt"].replace("\xa0", " ") for image in page.attributes("img")]
    assert "Accuracy and loss of stage 3 by epoch, smoothed." in alts
    last = "after epoch 100: training accuracy 99.7 %, validation accuracy 99.6 %."
    assert f"Accuracy and loss of stage 3 by epoch; {last}" in alts


def test_page_of_one_stage_does_not_number_it(written):
    page = Page(written(evaluation())["index.html"])
    assert page.stages()[0][0] == "head only with dense-256"
    text = " ".join(page.text.split())
    assert "Stage 1" not in text
    assert "oldest first" not in text
    assert any("of the training by epoch" in image["alt"] for image in page.attributes("img"))


def test_early_stopping_is_told_both_ways(written):
    stopped = stage(10, stopped_epoch=9, kept_epoch=8, monitor="val_accuracy")
    row = Page(written(evaluation(stages=(stopped,)))["index.html"]).stages()[0]
    assert row[3] == "10 stopped after epoch 10 (9 counted from zero, as Keras does)"
    assert row[4] == "8 best val_accuracy"
    first = stage(1, stopped_epoch=0)
    row = Page(written(evaluation(stages=(first,)))["index.html"]).stages()[0]
    assert row[3] == "1 stopped after epoch 1 (0 counted from zero, as Keras does)"
    assert "Keras" not in Page(written(evaluation())["index.html"]).text


def test_a_stage_without_validation_or_without_epochs(written):
    bare = stage(12, history=history(12, ["loss", "accuracy"]), metrics={"loss": None, "accuracy": 0.875})
    empty = stage(0, history=[])
    found = evaluation(stages=(empty, bare))
    files = written(found)
    assert {name for name in files if name.startswith("curves")} == {"curves.png", "curves_smoothed.png"}
    page = Page(files["index.html"])
    assert [row[-4:] for row in page.stages()] == [["-"] * 4, ["87.5 %", "-", "-", "-"]]
    assert "No epochs are recorded" in page.text
    alts = [image["alt"] for image in page.attributes("img")]
    assert not any("validation" in alt for alt in alts)
    assert [line.split()[-1] for line in summary(found).splitlines() if "dense-256" in line] == ["-", "-"]


def test_hostile_names_stay_text(written):
    evil = f"\"'><img src=http://e/x.png onerror=alert(1)>{HOSTILE}\r\n\u202e"
    found = evaluation(
        [HOSTILE, evil],
        model=f"/jobs/{evil}",
        data=evil,
        split=evil,
        mistakes=(Mistake(path=evil, label=HOSTILE, predicted=evil, probability=0.9, thumbnail=JPEG),),
        provenance={evil: {HOSTILE: evil}, "list": [HOSTILE]},
        stages=(
            stage(3, head=evil, monitor=evil, augment=evil, command=evil, kept_epoch=2, **{"from": evil}),
            stage(3, head=HOSTILE, monitor=HOSTILE, augment=HOSTILE, kept_epoch=2, **{"from": HOSTILE}),
        ),
    )
    raw = written(found)["index.html"]
    plain = evaluation(mistakes=evaluation().mistakes[:1], stages=(stage(3), stage(3)))
    page, harmless = Page(raw), Page(written(plain)["index.html"])
    assert HOSTILE in page.text
    assert b"<script" not in raw
    assert b"\r" not in raw
    assert "\u202e".encode() not in raw
    assert "\\r\\n\\u202e" in page.text
    for cells, name in zip(page.stages(), (escaped(evil), HOSTILE), strict=True):
        assert cells[1] == f"from {name} on with {name}"
        assert cells[3] == f"{name} new views in each epoch"
        assert cells[5] == f"2 best {name}"
    images = page.attributes("img")
    assert len(images) == len(harmless.attributes("img"))
    assert all(set(image) <= {"src", "alt", "style"} for image in images)
    assert images[-1]["alt"] == escaped(evil)


def test_page_of_many_classes_names_the_weakest_and_folds_the_rest(written):
    page = Page(written(many(30))["index.html"])
    text = " ".join(page.text.split())
    assert "Weakest classes" in text
    assert "Most frequent confusions" in text
    assert "All 30 classes" in text
    assert len(page.attributes("details")) == 2
    assert "Weakest classes" not in Page(written(evaluation())["index.html"]).text


def test_page_without_stages_and_mistakes(written):
    page = Page(
        written(evaluation(matrix=[[3, 0], [0, 4]], stages=(), mistakes=(), provenance={}))["index.html"]
    )
    assert len(page.attributes("img")) == 1
    assert "every image was classified correctly" in page.text
    assert "Nothing is recorded" in page.text


def test_a_class_without_images_has_no_recall(written):
    found = evaluation(["cats", "dogs", "newts"], [[5, 1, 0], [0, 6, 0], [0, 0, 0]])
    zeros = dataclasses.replace(found.scores[2], precision=0.0, recall=0.0, f1=0.0)
    zeroed = dataclasses.replace(found, scores=(*found.scores[:2], zeros))
    for one, precision in ((found, "-"), (zeroed, "0.000")):
        line = next(line for line in summary(one).splitlines() if line.startswith("newts"))
        assert line.split() == ["newts", precision, "-", "-", "0"]
    files = written(zeroed)
    assert "A class without images has neither recall nor F1." in Page(files["index.html"]).text
    scores = json.loads(written(found)["report.json"])["scores"]
    assert scores[2] == {"label": "newts", "precision": None, "recall": None, "f1": None, "support": 0}


def test_nothing_evaluated(written):
    found = evaluation(matrix=[[0, 0], [0, 0]], loss=math.nan, mistakes=())
    assert found.accuracy_interval is None
    files = written(found)
    assert json.loads(files["report.json"])["accuracy"] is None
    assert "No image with a label was evaluated" in Page(files["index.html"]).text
    assert "accuracy  -" in summary(found)


def test_page_stays_small_with_many_mistakes(written):
    mistake = Mistake(path="a.jpg", label="cats", predicted="dogs", probability=0.9)
    page = Page(written(evaluation(mistakes=(mistake,) * 500))["index.html"])
    assert len(page.attributes("figure")) == scores.MAX_TILES
    assert "More in report.json" in page.text


# The terminal


def test_summary_is_the_whole_result():
    lines = summary(evaluation()).splitlines()
    assert "images    1,005 found, 1,000 evaluated, 3 unreadable, 2 without a label" in lines
    assert "accuracy  0.9660  (95 % interval 0.9529 to 0.9756)" in lines
    assert "loss      0.0912" in lines
    assert "cats       0.960   0.972  0.966      500" in lines
    assert "cats   486    14" in lines
    assert " 99.9 %  cats -> dogs  cats/1.jpg" in lines


@pytest.mark.parametrize(
    "found",
    [
        evaluation(["猫" * 80, "x" * 300]),
        evaluation([HOSTILE, "[red]b[/red]"], model="m" * 400),
        many(20),
        many(20, mistakes=(Mistake(path="p/" * 99, label="猫" * 40, predicted="é" * 60, probability=0.5),)),
        many(30),
        many(120),
        evaluation(stages=(stage(head="h" * 200), stage(head="猫" * 80, **{"from": "x" * 300}))),
        evaluation([f"{n}" for n in range(20)], np.eye(20, dtype=int) * 123456),
    ],
)
def test_summary_fits_a_terminal(found):
    assert max(cell_len(line) for line in summary(found).splitlines()) <= 100


def test_summary_is_aligned_with_wide_names():
    lines = summary(evaluation(["猫の写真", "dog"])).splitlines()
    rows = [line for line in lines if line.endswith(" 500")]
    assert len(rows) == 2
    assert len({cell_len(line) for line in rows}) == 1


def test_summary_numbers_the_columns_where_the_names_are_too_wide():
    text = summary(evaluation([f"{'猫' * 8}{n}" for n in range(6)], np.eye(6, dtype=int)))
    assert f" 6 {'猫' * 8}5  0  0  0  0  0  1" in text


def test_summary_escapes_what_would_move_the_cursor():
    stages = (stage(head="c\x1b[31m"), stage(**{"from": "d\u202e"}))
    text = summary(evaluation(["a\x1b[31m\r", "b\u202e\n"], stages=stages))
    assert "c\\x1b[31m" in text
    assert "from d\\u202e on" in text
    assert "a\\x1b[31m\\r" in text
    assert "b\\u202e\\n" in text
    assert {char for char in text if not char.isprintable()} == {"\n"}


def test_summary_says_little_of_many_classes():
    assert "confusion matrix" in summary(many(20))
    assert "confusion matrix" not in summary(many(21))
    assert " 1 of 10  class-0 -> class-1" in summary(many(21))
    assert "the 20 weakest of 120 classes" in summary(many(120))


def test_summary_has_a_line_for_each_stage():
    stages = (
        stage(1, metrics={"val_accuracy": 0.9}),
        stage(10, stopped_epoch=9, augment="flip", metrics={"val_accuracy": 0.96125}),
        stage(1000, head="plain", **{"from": "block5_conv1"}),
    )
    lines = [re.sub(" {2,}", "  ", line) for line in summary(evaluation(stages=stages)).splitlines()]
    start = lines.index("trained in 3 stages")
    assert lines[start + 1 : start + 6] == [
        "  trained  epochs  validation accuracy",
        " 1  head only (dense-256)  1 epoch  0.9000",
        " 2  head only (dense-256), augmented  10 epochs, stopped early  0.9613",
        " 3  from block5_conv1 on (plain)  1,000 epochs  0.9996",
        "",
    ]
    assert "trained" not in summary(evaluation())


def test_summary_shows_the_five_worst():
    mistakes = tuple(Mistake(path=f"{n}.jpg", label="a", predicted="b", probability=0.9) for n in range(9))
    text = summary(evaluation(mistakes=mistakes))
    assert "4.jpg" in text
    assert "5.jpg" not in text
    assert "confidently wrong" not in summary(evaluation(mistakes=()))
