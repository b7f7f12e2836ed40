"""Values checked against type annotations."""

from typing import Any, Literal

import numpy as np
import pytest

from tlray.core.schema import coerced, described, fits

Choice = Literal["best", "last"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((3, int), (np.int64(3), int), (3, float), (0.5, float), (np.float32(0.5), float), ("x", str)),
        *((True, bool), (None, int | None), (3, int | None), ("last", Choice | None), (None, Choice | None)),
        *(([1, 2], list[int]), ([], list[str]), ({"a": 1}, dict[str, int]), ({"a": [None]}, dict[str, Any])),
        *(([{"a": 1.5, "b": None}], list[dict[str, float | None]]), (object(), Any)),
    ],
)
def test_what_fits(value, kind):
    assert fits(value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        *((True, int, "a whole number"), (True, float, "a number"), (0.5, int, "a whole number")),
        *(("3", int, "a whole number"), (None, str, "text"), (1, bool, "true or false")),
        *(("first", Choice, "best or last"), ("first", Choice | None, "best or last")),
        *(
            ([1, "2"], list[int], "a list"),
            ((1, 2), list[int], "a list"),
            ("x", int | None, "a whole number"),
        ),
        *(({1: 1}, dict[str, int], "a table"), ({"a": "1"}, dict[str, int], "a table")),
    ],
)
def test_what_does_not_fit_and_what_was_expected(value, kind, words):
    assert not fits(value, kind)
    assert described(kind) == words


def test_a_number_becomes_what_is_wanted():
    for value, kind, expected in [
        *((3, float, 3.0), (np.int64(3), int, 3), (np.float32(0.5), float | None, 0.5)),
        *((0.2, str | None, "0.2"), (4, str, "4"), (None, str | None, None), (3, int | None, 3)),
    ]:
        result = coerced(value, kind)
        assert (result, type(result)) == (expected, type(expected))
    for value, kind in [(True, str), (True, float), (0.5, int), ([], str)]:
        with pytest.raises(ValueError, match=f"^{described(kind)}$"):
            coerced(value, kind)
