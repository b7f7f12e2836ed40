"""A feature set as a whole: opened, its manifest checked, its rows in batches."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.feature_sets import (
    JOB,
    METADATA,
    PROVENANCE,
    SHAPE,
    cut,
    listed,
    numbers,
    rows,
    write,
    write_index,
    write_set,
)
from tests.support.manifests import feature_set_json
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.features import part_files
from tlray.features.feature_set import FORMAT, MANIFEST, FeatureSet, FeatureSetManifest, Rows
from tlray.features.part_files import part_name


def load(data: FeatureSet) -> list[Rows]:
    return list(data.batches(labelled=True))


def test_open(folder):
    write_set(folder)
    data = FeatureSet.open(folder.uri)
    assert (data.provenance, data.shape, data.classes) == (PROVENANCE, SHAPE, ["a", "b"])
    assert data.splits == {"train": 40, "test": 40}


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
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"{}", b"[" * 100_000),
        json.dumps({"format": FORMAT}).encode(),
        *(
            json.dumps({"format": FORMAT, "provenance": provenance}).encode()
            for provenance in (
                *(None, {"backbone": "vgg16"}),
                *({**asdict(PROVENANCE), "image_size": "32"}, {**asdict(PROVENANCE), "cut": 5}),
            )
        ),
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tlray-model/1", r"is a model; expected a feature set \(did you swap the two\?\)"),
        ("tlray-features/9", "the format tlray-features/9; .* make a new one with `tlray extract`"),
    ],
)
def test_a_manifest_of_something_else(folder, given, message):
    write_set(folder, format=given)
    with pytest.raises(UserError, match=message):
        FeatureSet.open(folder.uri)


@pytest.mark.parametrize("split", ["train", "test", None, "validation"])
def test_batches_are_the_labelled_rows_of_a_split(folder, split):
    features = write_set(folder)
    chosen = [
        (number, row)
        for number, row in enumerate(rows(120).to_pylist())
        if row["label"] is not None and split in (None, row["split"])
    ]
    batches = list(FeatureSet.open(folder.uri).batches(split, labelled=True))
    assert all(batch.paths for batch in batches)
    together = Rows.join(batches, (0, *SHAPE))
    for column, values in (("path", together.paths), ("split", together.splits), ("label", together.labels)):
        assert values == [row[column] for _, row in chosen]
    np.testing.assert_array_equal(together.features, features[[number for number, _ in chosen]])
    assert together.features.shape[1:] == SHAPE


def test_a_set_without_labels(folder):
    features = numbers(5)
    write_set(folder, (5,))
    unlabelled = listed([str(i) for i in range(5)], [None] * 5, [None] * 5)
    write_index(folder, (5,), unlabelled)
    part_files.write_part(folder, 0, unlabelled, cut(features), SHAPE, "float32", METADATA)
    assert load(FeatureSet.open(folder.uri)) == []


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


def test_where_and_join():
    left = Rows(["a", "b", "c"], ["train", None, "test"], ["x", "y", "z"], numbers(3))
    chosen = left.where(np.array([True, False, True]))
    assert (chosen.paths, chosen.splits, chosen.labels) == (["a", "c"], ["train", "test"], ["x", "z"])
    np.testing.assert_array_equal(chosen.features, left.features[[0, 2]])
    both = Rows.join([chosen, Rows(["d"], [None], ["w"], numbers(1, start=7))], (0, *SHAPE))
    assert (both.paths, both.splits, both.labels) == (
        ["a", "c", "d"],
        ["train", "test", None],
        ["x", "z", "w"],
    )
    np.testing.assert_array_equal(both.features, np.concatenate([chosen.features, numbers(1, start=7)]))
    for empty in (left.where(np.zeros(3, bool)), Rows.join([], (0, *SHAPE))):
        assert (empty.paths, empty.labels, empty.features.shape) == ([], [], (0, *SHAPE))


def test_readers_see_the_last_finished_state(folder):
    """An unfinished `extract --extend` has added shards to the index, and files of some of them."""
    write_set(folder)
    before = FeatureSet.open(folder.uri).counts()
    write_index(folder, (50, 0, 70, 30, 20))
    write(folder, numbers(30, start=120), shard=3, start=120)
    data = FeatureSet.open(folder.uri)
    assert data.counts() == before
    assert before.total() == 121
    assert sum(len(rows.paths) for rows in data.batches()) == 120


def test_an_index_that_lacks_shards_is_damaged(folder):
    write_set(folder)
    write_index(folder, (50, 0))
    with pytest.raises(JobError, match="index has 2 shards, and the manifest says 3"):
        load(FeatureSet.open(folder.uri))


def test_an_output_among_the_images_of_a_set(tmp_path):
    """Later reports in a model's folder would become images."""
    (tmp_path / "images").mkdir()
    for images in (str(tmp_path / "images"), "s3://bucket/images"):
        manifest = feature_set_json()
        manifest["job"]["images"] = images
        data = FeatureSet(Folder.open(tmp_path), FeatureSetManifest.from_json(manifest))
        data.check_outside(Folder.open(tmp_path / "model"))
        out = tmp_path / "images" / "model" if images.startswith("/") else f"{images}/model"
        with pytest.raises(UserError, match=f"--out {out} lies among the images"):
            data.check_outside(Folder(Folder.open(tmp_path).filesystem, str(out), str(out)))
