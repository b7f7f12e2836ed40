"""What made some features, and how that differs from what made others."""

import json
from dataclasses import asdict

import pytest

from tests.support.feature_sets import PROVENANCE
from tlray.models.provenance import Provenance


@pytest.mark.parametrize(
    "changed", ["cut", "weights_sha256", "preprocess", "image_size", "precision", "store"]
)
def test_provenance_names_what_differs(changed):
    other = Provenance(**{**asdict(PROVENANCE), changed: 64 if changed == "image_size" else "other"})
    (difference,) = PROVENANCE.differences(other)
    assert difference.startswith(changed)
    assert Provenance.from_json(json.loads(json.dumps(other.to_json()))) == other


def test_where_the_same_weights_lay_is_no_difference():
    other = Provenance(**{**asdict(PROVENANCE), "weights": "/elsewhere.h5", "package": "tlray 0.2.0"})
    assert PROVENANCE.differences(other) == []
