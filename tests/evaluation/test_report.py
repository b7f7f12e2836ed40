"""The report: its numbers, and a page that no file name can turn against its reader."""

import base64
import dataclasses
import json
import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tests.support.evaluations import HOSTILE, JPEG, evaluation, history, many, stage
from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.core.text import escaped
from tlray.evaluation import plots, scores
from tlray.evaluation.report import check_folder, write_report
from tlray.evaluation.scores import Evaluation, Mistake
from tlray.evaluation.summary import summary


def sketch(*what: Any) -> bytes:
    """In place of a plot, which takes its time: the head of a PNG, with its width, and what is plotted."""
    return b"\x89PNG\r\n\x1a\n" + bytes(8) + (200).to_bytes(4, "big") + repr(what).encode()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the report of an evaluation, with sketches for plots; gives the files' bytes by name."""
    monkeypatch.setattr(plots, "confusion", lambda classes, counts: sketch(classes, counts))
    monkeypatch.setattr(plots, "curves", lambda history, smooth=False: sketch(history, smooth))

    def write(result: Evaluation) -> dict[str, bytes]:
        names = write_report(result, Folder.open(str(tmp_path)))
        assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
        return {name: (tmp_path / name).read_bytes() for name in names}

    return write


@pytest.fixture
def page(written):
    """The page of the report of an evaluation, whose changes are given."""
    return lambda *values, **changes: Page(written(evaluation(*values, **changes))["index.html"])


class Page(HTMLParser):
    """The elements, the visible text and the tables of a page."""

    def __init__(self, page: bytes):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[list[str]] | None = None
        self.feed(page.decode())
        self.text = " ".join(self.text.split())

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


# report.json


def test_json_has_the_numbers(written):
    result = evaluation()
    content = json.loads(written(result)["report.json"])
    assert content == result.to_json()
    assert (content["images"], content["errors"], content["evaluated"]) == (1005, 3, 1000)
    assert (content["loss"], content["accuracy"], content["classes"]) == (0.0912, 0.966, ["cats", "dogs"])
    assert content["confusion_matrix"] == [[486, 14], [20, 480]]
    dogs = content["scores"][1]
    assert (dogs["label"], dogs["recall"], dogs["support"]) == ("dogs", 0.96, 500)
    mistake = {"path": "cats/1.jpg", "label": "cats", "predicted": "dogs", "probability": 0.9996}
    assert content["mistakes"][0] == mistake
    assert content["stages"] == [stage(3)]
    assert content["provenance"]["training"] == {"learning_rate": 2e-5}
    assert set(content) >= {field.name for field in dataclasses.fields(Evaluation)}


def test_json_has_null_for_what_is_no_number_and_plain_types_for_numpy(written):
    result = evaluation(
        loss=math.nan,
        stages=(stage(history=[{"epoch": 1, "loss": math.inf, "accuracy": 0.5}]),),
        provenance={"rate": np.float32(0.5), "shape": np.array([4, 4]), "bad": [math.nan], 3: {"x": Folder}},
    )
    raw = written(result)["report.json"]
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


# Which pictures there are


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


@pytest.mark.parametrize("mine", ["index.html", "notes.txt", "report.json"])
def test_a_report_never_takes_the_place_of_other_files(written, tmp_path, mine):
    folder = Folder.open(tmp_path)
    check_folder(folder)
    (tmp_path / mine).write_bytes(b"[]")
    with pytest.raises(UserError, match="is not empty and has no report by tlray"):
        check_folder(folder)
    (tmp_path / mine).unlink()
    written(evaluation())
    check_folder(folder)


# The page


@pytest.mark.parametrize("result", [evaluation(), many(30), evaluation(stages=(), mistakes=())])
def test_page_needs_nothing_from_outside(written, result):
    page = Page(written(result)["index.html"])
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
    sources = [image["src"] for image in Page(files["index.html"]).attributes("img")]
    names = ("confusion_matrix.png", "curves.png", "curves_smoothed.png")
    pictures = [*(files[name] for name in names), JPEG]
    assert [base64.b64decode(source.partition("base64,")[2]) for source in sources] == pictures


def test_page_tells_the_result(page):
    page = page(stages=(stage(),))
    for part in (
        *("model on cats-dogs", "966 of 1,000 images were classified correctly", "between 95.3 % and 97.6 %"),
        *("0.0912", "2 of 34 wrong answers", "99.9 %", "no picture", "learning_rate"),
        "smoothed, as an exponential moving average",
    ):
        assert part in page.text, part
    assert page.stages()[0][0] == "head only with dense-256"
    for part in ("Stage 1", "oldest first", "Keras"):  # There is one stage, and nothing stopped it early.
        assert part not in page.text
    assert any("of the training by epoch" in image["alt"] for image in page.attributes("img"))
    assert all(image["alt"] for image in page.attributes("img"))
    assert all(head.get("scope") for head in page.attributes("th"))


def test_page_tells_the_stages(page):
    stages = (
        stage(30),
        stage(10, **{"head": "plain", "augment": "rotation=40,flip", "from": "input"}),
        stage(
            100,
            **{"head": "plain", "augment": "flip", "views": 4, "kept_epoch": 72, "from": "block5_conv1"},
            **{"trainable_tensors": 10, "trainable_parameters": 9177089},
            metrics={"loss": 0.01, "accuracy": 1.0, "val_loss": 0.08, "val_accuracy": 0.975},
        ),
    )
    page = page(stages=stages)
    assert [" | ".join(row) for row in page.stages()] == [
        "1 | head only with dense-256 | 4 of 30 2,097,665 parameters | none | 30 | 30 | "
        "99.0 % | 0.0333 | 98.7 % | 0.0400",
        "2 | everything with plain | 4 of 30 2,097,665 parameters | rotation=40, flip new views in each epoch"
        " | 10 | 10 | 97.0 % | 0.1000 | 96.0 % | 0.1200",
        "3 | from block5_conv1 on with plain | 10 of 30 9,177,089 parameters | flip 4 views of each image | "
        "100 | 72 best val_loss | 100.0 % | 0.0100 | 97.5 % | 0.0800",
    ]
    assert "In 3 stages, oldest first" in page.text
    assert [part[:1] for part in page.text.split("Stage ")[1:]] == ["1", "2", "3"]
    alts = [image["alt"].replace("\xa0", " ") for image in page.attributes("img")]
    assert "Accuracy and loss of stage 3 by epoch, smoothed." in alts
    last = "after epoch 100: training accuracy 99.7 %, validation accuracy 99.6 %."
    assert f"Accuracy and loss of stage 3 by epoch; {last}" in alts


def test_early_stopping_is_told_both_ways(page):
    stopped = stage(10, stopped_epoch=9, kept_epoch=8, monitor="val_accuracy")
    row = page(stages=(stopped,)).stages()[0]
    assert row[3] == "10 stopped after epoch 10 (9 counted from zero, as Keras does)"
    assert row[4] == "8 best val_accuracy"
    row = page(stages=(stage(1, stopped_epoch=0),)).stages()[0]
    assert row[3] == "1 stopped after epoch 1 (0 counted from zero, as Keras does)"


def test_a_stage_without_validation_or_without_epochs(written):
    bare = stage(12, history=history(12, ["loss", "accuracy"]), metrics={"loss": None, "accuracy": 0.875})
    empty = stage(0, history=[])
    result = evaluation(stages=(empty, bare))
    files = written(result)
    assert {name for name in files if name.startswith("curves")} == {"curves.png", "curves_smoothed.png"}
    page = Page(files["index.html"])
    assert [row[-4:] for row in page.stages()] == [["-"] * 4, ["87.5 %", "-", "-", "-"]]
    assert "No epochs are recorded" in page.text
    alts = [image["alt"] for image in page.attributes("img")]
    assert not any("validation" in alt for alt in alts)
    assert [line.split()[-1] for line in summary(result).splitlines() if "dense-256" in line] == ["-", "-"]


def test_hostile_names_stay_text(written):
    evil = f"\"'><img src=http://e/x.png onerror=alert(1)>{HOSTILE}\r\n\u202e"
    hostile = evaluation(
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
    raw = written(hostile)["index.html"]
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


def test_page_of_many_classes_names_the_weakest_and_folds_the_rest(written, page):
    many_classes = Page(written(many(30))["index.html"])
    for part in ("Weakest classes", "Most frequent confusions", "All 30 classes"):
        assert part in many_classes.text
    assert len(many_classes.attributes("details")) == 2
    assert "Weakest classes" not in page().text


def test_page_without_stages_and_mistakes(page):
    page = page(matrix=[[3, 0], [0, 4]], stages=(), mistakes=(), provenance={})
    assert len(page.attributes("img")) == 1
    assert "every image was classified correctly" in page.text
    assert "Nothing is recorded" in page.text


def test_a_class_without_images_has_no_recall(written):
    undefined = evaluation(["cats", "dogs", "newts"], [[5, 1, 0], [0, 6, 0], [0, 0, 0]])
    zeros = dataclasses.replace(undefined.scores[2], precision=0.0, recall=0.0, f1=0.0)
    zeroed = dataclasses.replace(undefined, scores=(*undefined.scores[:2], zeros))
    for result, precision in ((undefined, "-"), (zeroed, "0.000")):
        line = next(line for line in summary(result).splitlines() if line.startswith("newts"))
        assert line.split() == ["newts", precision, "-", "-", "0"]
    files = written(zeroed)
    assert "A class without images has neither recall nor F1." in Page(files["index.html"]).text
    scores = json.loads(written(undefined)["report.json"])["scores"]
    assert scores[2] == {"label": "newts", "precision": None, "recall": None, "f1": None, "support": 0}


def test_nothing_evaluated(written):
    result = evaluation(matrix=[[0, 0], [0, 0]], loss=math.nan, mistakes=())
    assert result.accuracy_interval is None
    files = written(result)
    assert json.loads(files["report.json"])["accuracy"] is None
    assert "No image with a label was evaluated" in Page(files["index.html"]).text
    assert "accuracy  -" in summary(result)


def test_page_stays_small_with_many_mistakes(page):
    mistake = Mistake(path="a.jpg", label="cats", predicted="dogs", probability=0.9)
    page = page(mistakes=(mistake,) * 500)
    assert len(page.attributes("figure")) == scores.MAX_TILES
    assert "More in report.json" in page.text
