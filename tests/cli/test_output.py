"""What commands print when they have done their work."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.support.command_line import invoke
from tlray.cli import summaries
from tlray.cli.progress import AccountPrinter
from tlray.cli.tables import table
from tlray.core import config
from tlray.core.results import Account, ImageError, InferenceCounts, TrainingTime
from tlray.images.index_diff import Changes
from tlray.training.model_folder import TrainResult


def test_a_table():
    rows = [("model", "fit", "1.0 s", "8 epochs"), ("m", "evaluate", "12.5 s", "")]
    assert table(rows, right={2}) == (
        "model  fit        1.0 s  8 epochs\nm      evaluate  12.5 s"  # No space at the end.
    )
    assert table([]) == ""


def test_the_plugins_are_a_table():
    lines = invoke("plugins", "list").stdout.splitlines()
    assert len({re.match(r"\S+ +\S+ +(?=\S)", line).end() for line in lines}) == 1


def test_a_result_as_text_and_as_json(monkeypatch):
    trained = TrainResult(
        rows=1200,
        validation_rows=0,
        epochs=2,
        seconds=1.5,
        kept_epoch=1,
        stopped_epoch=1,
        errors=4,
        trainable_tensors=4,
        tensors=30,
        metrics={"loss": 0.25, "val_loss": None},
        history=[],
        limited_by="training",
        time=TrainingTime(training=1.25, waited=0.0),
        out="/y",
        was_complete=False,
        first_errors=[ImageError(path="a/1.png", stage="read", error="EmptyFile", message="it has no bytes")],
        errors_uri="/y/errors",
        warnings=["nothing was trained"],
    )

    def fit(features: str, out: str, given: config.FitConfig, *, address: Any, report: Any) -> TrainResult:
        assert (features, out, address) == ("x", "my y", "here:1")
        assert given == config.FitConfig(epochs=2, learning_rate=0.5, head="linear")
        report({"epoch": 1, "loss": 0.25})
        return trained

    monkeypatch.setattr("tlray.training.fit.fit", fit)
    options = ["--epochs", "2", "--learning-rate", "0.5", "--head", "linear", "--address", "here:1"]
    result = invoke("fit", "x", "--out", "my y", *options)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "2 epochs on 1,200 rows in 1.5 s; 4 of 30 weight tensors trained",
        "stopped early after epoch 2, which Keras counts as 1",
        "training-bound: training 1.2 s, 0.0 of it waiting; to speed up, add --workers, on GPUs or nodes",
        "the model has the weights of epoch 1: loss 0.2500, val_loss not finite",
        "4 images could not be used; all errors are in /y/errors",
        "  a/1.png: it has no bytes (EmptyFile)",
        "model: /y",
        "now: tlray evaluate 'my y' IMAGES",
    ]
    assert "loss 0.2500" in result.stderr
    assert "warning: nothing was trained" in result.stderr
    result = invoke("fit", "x", "--out", "my y", *options, "--json")
    assert json.loads(result.stdout) == trained.to_json()
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((1200, 0, 0), "1,200 new"),
        ((0, 1, 2), "1 with another size or time (a), 2 removed; their stored features are kept"),
        ((0, 4, 0), "4 with another size or time (a, b, c, ...); their stored features are kept"),
    ],
)
def test_what_has_changed_among_the_images(counts, text):
    added, replaced, removed = counts
    paths = ["a", "b", "c"][:replaced]
    changes = Changes(added=added, replaced=replaced, removed=removed, replaced_paths=paths)
    assert summaries.changes(changes) == [f"changes since the images were listed: {text}"]


def test_no_changes():
    assert summaries.changes(Changes(added=0, replaced=0, removed=0, replaced_paths=[])) == []
    assert summaries.changes(None) == []


def test_a_set_that_was_complete_is_said_to_be():
    counts = InferenceCounts(
        images=1200, rows=1199, errors=1, seconds=0.5, images_per_second=0.0, limited_by="nothing", time=None
    )
    assert summaries.counts(counts, was_complete=True) == [
        "already complete, so nothing was computed",
        "1,200 images: 1,199 rows, 1 error",
    ]
    (line,) = summaries.counts(counts)
    assert line.endswith("1 error in 0.5 s (0.0 images/s)")


def test_an_account_is_printed_again_only_if_it_has_changed(capsys):
    first = Account(
        **{"images": 2, "complete": False, "splits": {}, "classes": {"a": 2}, "unlabelled": 0, "columns": {}},
        **{"passed_over": {}, "unread": {}, "hidden": 0, "warnings": ["it is doubtful"]},
    )
    printer = AccountPrinter()
    for account in (first, first, replace(first, complete=True, images=3)):
        printer(account)
    assert capsys.readouterr() == (
        "",
        "found 2 images so far: 1 class: a 2\nwarning: it is doubtful\n"
        "found 3 images: 1 class: a 2\nwarning: it is doubtful\n",
    )
