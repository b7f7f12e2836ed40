"""The numbers of an evaluation."""

import pytest

from tests.support.evaluations import evaluation


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(966, 1000, 0.9529, 0.9756), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_interval_is_wilson(right, count, low, high):
    interval = evaluation(matrix=[[right, count - right], [0, 0]]).accuracy_interval
    assert interval == pytest.approx((low, high), abs=5e-5)
    assert 0 <= interval[0] <= interval[1] <= 1


def test_confusions_and_weakest_come_worst_first():
    result = evaluation("abc", [[5, 3, 2], [0, 9, 4], [0, 4, 6]])
    assert result.confusions() == [(4, 10, "c", "b"), (4, 13, "b", "c"), (3, 10, "a", "b"), (2, 10, "a", "c")]
    assert [score.label for score in result.weakest(2)] == ["c", "b"]


def test_a_class_never_predicted_is_among_the_weakest_and_an_absent_one_is_not():
    result = evaluation("abc", [[9, 0, 1], [3, 0, 0], [0, 0, 0]])
    assert [score.label for score in result.weakest()] == ["b", "a"]
