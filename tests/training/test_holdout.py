"""Which rows train and which are held out, and what is refused before a training begins."""

import numpy as np
import pytest

from tlray.core.config import FitConfig
from tlray.core.errors import UserError
from tlray.features.feature_set import Rows
from tlray.images.listing import assign_split
from tlray.training.holdout import check_held_out, check_parts, check_rows, part

TWO = {("train", "a"): 3, ("train", "b"): 3}
CAFES = ("caf\u00e9", "cafe\u0301")


def rows(*labels: str) -> Rows:
    return Rows(
        [label + ".png" for label in labels], [None] * len(labels), [*labels], np.zeros((len(labels), 1))
    )


def test_a_fraction_holds_out_about_so_many_training_rows_and_always_the_same():
    config, paths = FitConfig(validation="0.2"), [f"{number}.png" for number in range(2000)]
    for split in (None, "train"):
        uses = [part(config, split, path) for path in paths]
        assert set(uses) == {"training", "validation"}
        assert 340 < uses.count("validation") < 460
        assert uses == [part(config, split, path) for path in paths]
        assert uses != [part(FitConfig(validation="0.2", seed=7), split, path) for path in paths]
    assert {part(config, "test", path) for path in paths} == {None}
    # It is the same share of the images that `--split` with the same seed has assigned to `train`.
    trained = [path for path in paths if assign_split(path, 0.8, config.seed) == "train"]
    share = [part(config, "train", path) for path in trained].count("validation") / len(trained)
    assert 0.15 < share < 0.25


def test_a_split_that_is_named_is_the_one_that_is_held_out():
    assert [part(FitConfig(), split, "1.png") for split in ("validation", "test")] == ["validation", None]
    named = FitConfig(validation="test")
    assert [part(named, split, "1.png") for split in ("validation", "test")] == [None, "validation"]


@pytest.mark.parametrize(
    ("counts", "settings", "classes"),
    [
        (TWO, {}, ["a", "b"]),
        ({(None, "b"): 2, (None, "a"): 1, (None, None): 5}, {}, ["a", "b"]),
        ({**TWO, ("test", "c"): 1}, {}, ["a", "b"]),
        ({**TWO, ("validation", "c"): 1, ("test", "a"): 1}, {"validation": "test"}, ["a", "b"]),
        ({("train", None): 3}, {}, []),
    ],
)
def test_the_classes_are_those_of_the_training_images(counts, settings, classes):
    assert check_parts(FitConfig(**settings), "images", counts) == classes


@pytest.mark.parametrize(
    ("counts", "settings", "message"),
    [
        ({("test", "a"): 3}, {}, "images has no training rows: it has the splits test"),
        ({("train", None): 3, ("test", "a"): 1}, {}, "the 3 train images have no labels"),
        ({**TWO, ("train", CAFES[0]): 1, ("train", CAFES[1]): 1}, {}, "white space or Unicode form"),
        ({**TWO, ("validation", "c"): 2}, {}, "the class 'c' has 2 validation images and no training images"),
        ({**TWO, ("validation", None): 2}, {}, "the 2 validation images have no labels"),
        ({**TWO, ("dev", "c"): 2}, {"validation": "dev"}, "the class 'c' has 2 dev images and no training"),
        (TWO, {"validation": "train"}, "--validation train: the model would be validated on the rows it is"),
        (TWO, {"validation": "dev"}, "--validation dev: images has no such split: it has train"),
        ({**TWO, ("validation", "a"): 1}, {"validation": "0.2"}, "already has validation rows; leave out"),
        (TWO, {"workers": 7}, "--workers 7: images has only 6 training rows"),
        (TWO, {"early_stopping": 2}, "but there are no validation rows: add --validation 0.2"),
    ],
)
def test_images_that_do_not_fit_the_settings(counts, settings, message):
    with pytest.raises(UserError, match=message):
        check_parts(FitConfig(**settings), "images", counts)


def test_a_fraction_that_takes_all_images_of_a_class():
    config = FitConfig(validation="0.5")
    check_held_out(config, "images", ["a", "b", None], ["a", "b"])
    check_held_out(FitConfig(), "images", ["a"], ["a", "b"])
    with pytest.raises(UserError, match=r"0.5 leaves no training image of 'b' in images; give a smaller"):
        check_held_out(config, "images", ["a", None], ["a", "b"])
    with pytest.raises(UserError, match="leaves no training image of 'b'"):
        check_rows(config, "images", rows("a", "a"), rows("b"))


def test_rows_that_are_left_without_those_of_bad_images():
    check_rows(FitConfig(validation="0.5"), "images", rows("a", "b"), rows("a"))
    with pytest.raises(
        UserError, match=r"--validation 0\.1 holds out no row of images: give a larger fraction"
    ):
        check_rows(FitConfig(validation="0.1"), "images", rows("a", "b"), rows())
    with pytest.raises(UserError, match="the 2 training rows of images are all of one class"):
        check_rows(FitConfig(), "images", rows("a", "a"), rows())
    with pytest.raises(UserError, match="--workers 3: images has only 2 training rows"):
        check_rows(FitConfig(workers=3), "images", rows("a", "b"), rows())
