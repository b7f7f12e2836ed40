"""The pictures of a report show the numbers, whatever the classes are called."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from tests.support.evaluations import evaluation, history, many
from tlray.evaluation import plots
from tlray.evaluation.scores import Evaluation


def confusion_plot(result: Evaluation) -> bytes:
    return plots.confusion(result.classes, result.confusion_matrix)


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


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
    matrices = [[9, 1], [1, 9]], [[8, 2], [1, 9]]
    assert len({confusion_plot(evaluation(matrix=matrix)) for matrix in matrices}) == 2


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


def test_smoothing_is_the_published_one_and_goes_on_after_a_value_that_is_missing():
    values = [1.0, 0.0, 0.5, 1.0]
    # 1; 0.8 x 1 + 0.2 x 0; 0.8 x 0.8 + 0.2 x 0.5; 0.8 x 0.74 + 0.2 x 1
    assert plots.smoothed(values) == pytest.approx([1.0, 0.8, 0.74, 0.792], abs=1e-12)
    assert plots.smoothed([]) == []
    smoothed = plots.smoothed([math.nan, 1.0, math.inf, 0.0])
    assert smoothed == pytest.approx([math.nan, 1.0, math.nan, 0.8], abs=1e-12, nan_ok=True)


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
