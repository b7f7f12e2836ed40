"""A feature set as a whole: opened, its manifest checked, its rows in batches."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.feature_sets import JOB, METADATA, PROVENANCE, SHAPE, cut, listed, numbers, rows, write_set
from tlray.core.errors import JobError, UserError
from tlray.features import part_files
from tlray.features.feature_set import FORMAT, MANIFEST, FeatureSet, Rows
from tlray.features.part_files import part_name


def load(data: FeatureSet, split: str | None = None) -> Rows:
    """All labelled rows of a split."""
    return Rows.join(list(data.batches(split, labelled=True)), (0, *SHAPE))


def test_open(folder):
    write_set(folder)
    found = FeatureSet.open(folder.uri)
    assert found.provenance == PROVENANCE
    assert found.shape == SHAPE
    assert found.classes == ["a", "b"]
    assert found.splits == {"train": 40, "test": 40}


def test_no_set(folder, tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    for uri in (folder.uri, str(tmp_path), str(tmp_path / "file"), "memory://nothing-here"):
        with pytest.raises(UserError, match="expected a feature set") as caught:
            FeatureSet.open(uri)
        assert uri in str(caught.value)


def test_an_unfinished_set_is_told_apart(folder):
    folder.write("index/part-00000.parquet", b"")
    with pytest.raises(UserError, match="not finished"):
        FeatureSet.open(folder.uri)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'"text"',
        b"{}",
        json.dumps({"format": FORMAT}).encode(),
        json.dumps({"format": FORMAT, "provenance": None}).encode(),
        json.dumps({"format": FORMAT, "provenance": {"backbone": "vgg16"}}).encode(),
        json.dumps({"format": FORMAT, "provenance": {**asdict(PROVENANCE), "image_size": "32"}}).encode(),
        json.dumps({"format": FORMAT, "provenance": {**asdict(PROVENANCE), "cut": 5}}).encode(),
        b"[" * 100_000,
    ],
)
def test_a_damaged_manifest(folder, data):
    folder.write(MANIFEST, data)
    with pytest.raises(UserError, match="damaged") as caught:
        FeatureSet.open(folder.uri)
    assert folder.join(MANIFEST) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "values",
    [
        *({"feature_shape": shape} for shape in ([2, -3], [2, "3"], [2.5], [1 << 20, 1 << 20], [None])),
        *({"shards": shards} for shards in (-1, 10**12, "3")),
        *({name: "text"} for name in ("job", "classes", "splits", "rows", "errors")),
    ],
)
def test_a_manifest_made_to_do_harm(folder, values):
    write_set(folder, **values)
    with pytest.raises(UserError, match="damaged"):
        FeatureSet.open(folder.uri)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("path", pa.int64()),
        ("label", pa.list_(pa.string())),
        ("features", pa.list_(pa.float32())),
        ("features", pa.fixed_shape_tensor(pa.float32(), (1 << 15, 1 << 15))),
    ],
)
def test_a_part_made_to_do_harm(folder, column, kind):
    write_set(folder)
    path = folder.join(part_name(0))
    schema = pq.read_schema(path)
    schema = schema.set(schema.get_field_index(column), pa.field(column, kind))
    pq.write_table(schema.empty_table(), path)
    with pytest.raises(JobError, match=r"cannot be read: its (columns|features) are"):
        load(FeatureSet.open(folder.uri))


def test_a_manifest_of_something_else(folder):
    write_set(folder, format="tlray-model/1")
    with pytest.raises(UserError, match=r"is a model; expected a feature set \(did you swap the two\?\)"):
        FeatureSet.open(folder.uri)
    write_set(folder, format="tlray-features/9")
    with pytest.raises(
        UserError, match=r"the format tlray-features/9; .* make a new one with `tlray extract`"
    ):
        FeatureSet.open(folder.uri)


@pytest.mark.parametrize("split", ["train", "test", None, "validation"])
def test_batches_are_the_labelled_rows_of_a_split(folder, split):
    features = write_set(folder)
    all_rows = rows(120).to_pylist()
    chosen = [
        i for i, row in enumerate(all_rows) if row["label"] is not None and split in (None, row["split"])
    ]
    data = FeatureSet.open(folder.uri)
    found = list(data.batches(split, labelled=True))
    assert all(batch.paths for batch in found)
    together = load(data, split)
    assert (
        together.paths == [all_rows[i]["path"] for i in chosen] == [p for batch in found for p in batch.paths]
    )
    assert together.labels == [all_rows[i]["label"] for i in chosen]
    np.testing.assert_array_equal(together.features, features[chosen])
    assert together.features.shape[1:] == SHAPE


def test_a_set_without_labels(folder):
    features = numbers(5)
    write_set(folder, (5,))
    unlabelled = listed([str(i) for i in range(5)], [None] * 5, [None] * 5)
    part_files.write_part(folder, 0, unlabelled, cut(features), SHAPE, "float32", METADATA)
    found = load(FeatureSet.open(folder.uri))
    assert (found.paths, found.features.shape) == ([], (0, *SHAPE))


def test_a_part_of_another_job_is_never_mixed_in(folder):
    write_set(folder)
    metadata = {"job": {**JOB, "provenance": {**PROVENANCE.to_json(), "cut": "block4_pool"}}}
    part_files.write_part(folder, 1, rows(3), cut(numbers(3)), SHAPE, "float32", metadata)
    with pytest.raises(JobError):
        load(FeatureSet.open(folder.uri))


def test_features_of_another_shape_than_the_manifest(folder):
    write_set(folder, feature_shape=[4, 3, 2])
    with pytest.raises(JobError, match=r"\(2, 3, 4\)"):
        load(FeatureSet.open(folder.uri))


# Rows


def test_where():
    found = Rows(["a", "b", "c"], ["train", None, "test"], ["x", "y", "z"], numbers(3))
    some = found.where(np.array([True, False, True]))
    assert (some.paths, some.splits, some.labels) == (["a", "c"], ["train", "test"], ["x", "z"])
    np.testing.assert_array_equal(some.features, found.features[[0, 2]])
    none = found.where(np.zeros(3, bool))
    assert (none.paths, none.labels, none.features.shape) == ([], [], (0, *SHAPE))


def test_where_wants_a_choice_for_every_row():
    with pytest.raises(IndexError):
        Rows(["a", "b"], [None, None], ["x", "y"], numbers(2)).where(np.array([True]))


def test_join():
    one = Rows(["a"], ["train"], ["x"], numbers(1))
    two = Rows(["b", "c"], [None, "test"], ["y", "z"], numbers(2, start=7))
    both = Rows.join([one, two], (0, *SHAPE))
    assert (both.paths, both.splits) == (["a", "b", "c"], ["train", None, "test"])
    assert both.labels == ["x", "y", "z"]
    np.testing.assert_array_equal(both.features, np.concatenate([one.features, two.features]))
    none = Rows.join([], (0, *SHAPE))
    assert (none.paths, none.labels, none.features.shape) == ([], [], (0, *SHAPE))
