"""The result of an evaluation in a terminal."""

import math
import re

import numpy as np
import pytest
from rich.cells import cell_len

from tests.support.evaluations import HOSTILE, evaluation, many, stage
from tlray.evaluation.scores import Mistake
from tlray.evaluation.summary import percent, summary


def test_summary_is_the_whole_result():
    lines = summary(evaluation()).splitlines()
    assert "images    1,005 found, 1,000 evaluated, 3 unreadable, 2 without a label" in lines
    assert "accuracy  0.9660  (95 % interval 0.9529 to 0.9756)" in lines
    assert "loss      0.0912" in lines
    assert "cats       0.960   0.972  0.966      500" in lines
    assert "cats   486    14" in lines
    assert " 99.9 %  cats -> dogs  cats/1.jpg" in lines


@pytest.mark.parametrize(
    "result",
    [
        evaluation(["猫" * 80, "x" * 300]),
        evaluation([HOSTILE, "[red]b[/red]"], model="m" * 400),
        many(20, mistakes=(Mistake(path="p/" * 99, label="猫" * 40, predicted="é" * 60, probability=0.5),)),
        many(120),
        evaluation(stages=(stage(head="h" * 200), stage(head="猫" * 80, **{"from": "x" * 300}))),
        evaluation([f"{n}" for n in range(20)], np.eye(20, dtype=int) * 123456),
    ],
)
def test_summary_fits_a_terminal(result):
    assert max(cell_len(line) for line in summary(result).splitlines()) <= 100


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
    assert ("4.jpg" in text, "5.jpg" in text) == (True, False)
    assert "confidently wrong" not in summary(evaluation(mistakes=()))


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.0 %"), (0.99996, "99.9 %"), (0.966, "96.6 %"), (0.0, "0.0 %"), (math.nan, "-")],
)
def test_only_the_whole_is_100_percent(share, text):
    assert percent(share) == text
