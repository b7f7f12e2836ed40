"""Records as JSON, and back."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from tlray.core.record import Record, dump, plain
from tlray.core.results import NodeTime

NODE = NodeTime(node="1", host="here", actors=1, rows=2, seconds=0.5)


@dataclass(frozen=True, kw_only=True)
class Example(Record):
    name: str
    inner: NodeTime | None = None
    several: list[NodeTime]
    metrics: dict[str, float | None]


EXAMPLE = Example(name="x", inner=NODE, several=[NODE], metrics={"loss": 0.5, "val_loss": None})


def test_there_and_back():
    assert Example.from_json(json.loads(dump(EXAMPLE))) == EXAMPLE
    less = Example(name="x", several=[], metrics={})
    assert Example.from_json({"name": "x", "several": [], "metrics": {}, "more": 1}) == less


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 5}, "name is not text"),
        ({"several": None}, "several is not a list"),
        ({"several": [5]}, "several is not a NodeTime"),
        ({"several": [{}]}, "actors is missing"),
        ({"inner": {**NODE.to_json(), "rows": "2"}}, "rows is not a whole number"),
        ({"metrics": {"loss": "low"}}, "metrics is not a table"),
    ],
)
def test_what_is_no_record_of_that_kind(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Example.from_json({**EXAMPLE.to_json(), **changes})
    values = EXAMPLE.to_json()
    del values["metrics"]
    with pytest.raises(ValueError, match=r"^metrics is missing$"):
        Example.from_json(values)


def test_plain_values():
    assert plain({1: (np.float32(0.5), float("nan")), "a": {"b": np.arange(2)}, "c": {3}}) == {
        "1": [0.5, None],
        "a": {"b": [0, 1]},
        "c": "{3}",
    }
    assert dump({"ä": EXAMPLE.inner}) == json.dumps({"ä": NODE.to_json()}, ensure_ascii=False)
