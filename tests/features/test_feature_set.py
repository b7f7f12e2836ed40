"""Features on storage: what is written is read, by anyone, and nothing else is taken for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.manifests import feature_set_json
from tests.support.slow_storage import SlowStorage
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.features import part_files
from tlray.features.feature_set import FORMAT, MANIFEST, ExtractJob, FeatureSet, Rows
from tlray.features.part_files import ERRORS, error_name, part_name
from tlray.models.provenance import Provenance

PROVENANCE = Provenance(
    backbone="vgg16",
    package="tlray 0.1.0",
    weights="imagenet",
    weights_sha256="ab" * 32,
    cut="block5_pool",
    preprocess="imagenet",
    image_size=32,
    precision="float32",
    store="float32",
)
JOB = ExtractJob(
    format=FORMAT,
    images="/images",
    split=None,
    seed=None,
    max_pixels=100,
    provenance=PROVENANCE.to_json(),
).to_json()
METADATA = {"job": JOB, "classes": ["a", "b"], "versions": {"tlray": "0.1.0"}}
SHAPE = (2, 3, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "features"))


def listed(paths: list[str], splits: list[str | None], labels: list[str | None]) -> pa.Table:
    columns = {"path": paths, "split": splits, "label": labels}
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})


def rows(count: int, start: int = 0) -> pa.Table:
    numbers = range(start, start + count)
    return listed(
        [f"{i:05d}.png" for i in numbers],
        [("train", "test", None)[i % 3] for i in numbers],
        [("a", None, "b", "a")[i % 4] for i in numbers],
    )


def numbers(count: int, shape: tuple[int, ...] = SHAPE, start: int = 0) -> np.ndarray:
    """Features that say which row they are of; like VGG's, many are zero."""
    features = np.random.default_rng(start).standard_normal((count, *shape)).astype(np.float32)
    features[features < 0] = 0
    features.reshape(count, np.prod(shape))[:, 0] = np.arange(start, start + count)
    return features


def cut(features: np.ndarray, batch: int = 32) -> Iterator[np.ndarray]:
    return (features[at : at + batch] for at in range(0, len(features), batch))


def write(
    folder: Folder, features: np.ndarray, *, shard: int = 0, store: str = "float32", start: int = 0
) -> None:
    part_files.write_part(
        folder, shard, rows(len(features), start), cut(features), features.shape[1:], store, METADATA
    )


def read(folder: Folder, shard: int = 0) -> pa.Table:
    tables = list(part_files.read_shard(folder, shard, JOB))
    return pa.concat_tables(tables) if tables else pa.table({})


def load(data: FeatureSet, split: str | None = None) -> Rows:
    """All labelled rows of a split."""
    return Rows.join(list(data.batches(split, labelled=True)), (0, *SHAPE))


def write_set(folder: Folder, sizes: tuple[int, ...] = (50, 0, 70), **changed: Any) -> np.ndarray:
    """A whole feature set; the features of all its rows."""
    features, done = [], 0
    for shard, size in enumerate(sizes):
        features.append(numbers(size, start=done))
        write(folder, features[-1], shard=shard, start=done)
        done += size
    manifest = feature_set_json(
        job=JOB,
        provenance=PROVENANCE.to_json(),
        feature_shape=list(SHAPE),
        splits={"train": 40, "test": 40},
        shards=len(sizes),
        rows=done,
    )
    folder.write(MANIFEST, json.dumps({**manifest, **changed}).encode())
    return np.concatenate(features)


# Part files


@pytest.mark.parametrize("store", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(8,), SHAPE, (1, 1, 1)])
@pytest.mark.parametrize("count", [1, 32, 100])
def test_what_is_written_is_read(folder, store, shape, count):
    features = numbers(count, shape)
    write(folder, features, store=store)
    table = read(folder)
    assert table.select(["path", "split", "label"]).to_pylist() == rows(count).to_pylist()
    found = Rows.of(table)
    assert found.features.dtype == store
    np.testing.assert_array_equal(found.features, features.astype(store))


def test_only_the_part_file_is_written(folder):
    write(folder, numbers(10), shard=7)
    assert folder.names() == [part_name(7)] == ["part-00007.parquet"]


def test_the_schema(folder):
    write(folder, numbers(10), store="float16")
    schema = pq.read_schema(folder.join(part_name(0)))
    assert schema.names == ["path", "split", "label", "features"]
    assert schema.field("features").type == pa.fixed_shape_tensor(pa.float16(), SHAPE)
    assert [schema.field(i).type for i in range(3)] == [pa.string()] * 3
    assert json.loads(schema.metadata[b"tlray"]) == {**METADATA, "shard": 0}


def test_large_features_become_row_groups_of_a_bounded_size(folder):
    features = numbers(300, (32, 32, 32))  # 39 MB
    write(folder, features)
    with pq.ParquetFile(folder.join(part_name(0))) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert len(groups) > 1
    assert sum(groups) == 300
    assert max(groups) * features[0].nbytes < 24 << 20
    np.testing.assert_array_equal(Rows.of(read(folder)).features, features)


def test_reading_is_bounded_too(folder):
    write(folder, numbers(2500, (2,)))
    assert [table.num_rows for table in part_files.read_shard(folder, 0, JOB)] == [1024, 1024, 452]


@pytest.mark.parametrize("given", [31, 33, 0])
def test_another_number_of_features_than_rows_writes_nothing(folder, given):
    with pytest.raises((JobError, pa.ArrowInvalid)):
        part_files.write_part(folder, 0, rows(32), cut(numbers(given)), SHAPE, "float32", METADATA)
    assert folder.names() == []


def test_features_that_fail_on_their_way_write_nothing(folder):
    def features() -> Iterator[np.ndarray]:
        yield numbers(32)
        raise JobError("not finite")

    with pytest.raises(JobError, match="not finite"):
        part_files.write_part(folder, 0, rows(64), features(), SHAPE, "float32", METADATA)
    assert folder.names() == []


def test_a_shard_of_bad_images_only(folder):
    """A file with no rows is still a file: it says that the shard is done."""
    write(folder, numbers(0))
    assert part_files.count_rows(folder, [0], JOB) == [0]
    assert sum(table.num_rows for table in part_files.read_shard(folder, 0, JOB)) == 0
    assert pq.read_table(folder.join(part_name(0))).num_rows == 0


def test_read_parts_keeps_the_order(folder):
    features = write_set(folder)
    tables = list(part_files.read_parts(folder, 3, JOB))
    found = Rows.join([Rows.of(table) for table in tables], (0, *SHAPE))
    assert found.paths == [f"{i:05d}.png" for i in range(120)]
    np.testing.assert_array_equal(found.features, features)


def test_count_rows(folder):
    write_set(folder, (5, 0, 40))
    shards = [2, 0, 1]
    assert part_files.count_rows(folder, shards, JOB) == [40, 5, 0]
    assert part_files.count_rows(folder, [], JOB) == []


# Other readers


def pyarrow(files: str) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(files)
    return table["path"].to_pylist(), table["features"].combine_chunks().to_numpy_ndarray()


def pandas(files: str) -> tuple[list[str], np.ndarray]:
    frame = pd.read_parquet(files)
    return frame["path"].tolist(), np.stack(frame["features"].to_list())


def polars(files: str) -> tuple[list[str], np.ndarray]:
    frame = pl.read_parquet(files)
    return frame["path"].to_list(), np.array(frame["features"].to_list())


def ducks(files: str) -> tuple[list[str], np.ndarray]:
    found = duckdb.sql(f"SELECT path, features FROM '{files}'").fetchall()
    return [path for path, _ in found], np.array([row for _, row in found])


@pytest.mark.parametrize("store", ["float32", "float16"])
@pytest.mark.parametrize("reader", [pyarrow, pandas, polars, ducks])
@pytest.mark.filterwarnings("ignore")  # polars says that it does not know the tensor type.
def test_everyone_reads_the_same_numbers(folder, store, reader: Callable[..., Any]):
    features = numbers(40)
    write(folder, features, store=store)
    paths, found = reader(folder.join(part_name(0)))
    assert paths == rows(40)["path"].to_pylist()
    assert found.dtype.kind == "f"
    np.testing.assert_array_equal(found.reshape(40, -1), features.astype(store).reshape(40, -1))


def test_no_features_are_null(folder):
    write_set(folder)
    count = f"SELECT count(*) FROM '{folder.path}/part-*.parquet' WHERE features IS NULL"
    assert duckdb.sql(count).fetchall() == [(0,)]


# Files that are not of this set


@pytest.mark.parametrize("how", ["empty", "text", "truncated", "overwritten"])
def test_a_damaged_part(folder, how):
    write(folder, numbers(100))
    data = folder.read(part_name(0))
    footer = 8 + int.from_bytes(data[-8:-4], "little")
    changed = {
        "empty": b"",
        "text": b"no parquet at all",
        "truncated": data[: len(data) // 2],
        "overwritten": data[:4] + b"\xff" * (len(data) - footer - 4) + data[-footer:],
    }
    folder.write(part_name(0), changed[how])
    with pytest.raises(JobError, match=re.escape(part_name(0))):
        read(folder)
    if how != "overwritten":  # Counting reads no more than the footer.
        with pytest.raises(JobError, match=re.escape(part_name(0))):
            part_files.count_rows(folder, [0], JOB)


def test_a_missing_part(folder):
    write(folder, numbers(10))
    with pytest.raises(JobError, match=re.escape(part_name(1))):
        list(part_files.read_parts(folder, 2, JOB))
    with pytest.raises(JobError, match=re.escape(part_name(1))):
        part_files.count_rows(folder, [0, 1], JOB)


@pytest.mark.parametrize("metadata", [{"job": {**JOB, "images": "/others"}}, {}, {"job": None}])
def test_a_part_of_another_job(folder, metadata):
    features = numbers(10)
    part_files.write_part(folder, 0, rows(10), cut(features), SHAPE, "float32", metadata)
    with pytest.raises(JobError, match=re.escape(part_name(0))):
        read(folder)
    with pytest.raises(JobError, match=re.escape(part_name(0))):
        part_files.count_rows(folder, [0], JOB)


def test_a_part_of_another_program(folder):
    Path(folder.path).mkdir()
    pq.write_table(pa.table({"path": ["a"], "features": [1.0]}), folder.join(part_name(0)))
    with pytest.raises(JobError):
        read(folder)
    with pytest.raises(JobError):
        part_files.count_rows(folder, [0], JOB)


# Error files


def errors(*paths: str) -> pa.Table:
    table = pa.table({name: [f"{name} of {path}" for path in paths] for name in ERRORS.names}, ERRORS)
    return table.set_column(0, "path", pa.array(list(paths), pa.string()))


def test_errors_come_back_with_their_shard(folder):
    part_files.write_errors(folder, 0, errors(), METADATA)
    part_files.write_errors(folder, 3, errors("x", "new\nline"), METADATA)
    part_files.write_errors(folder, 100000, errors("日本"), METADATA)
    found = part_files.read_errors(folder, 100001)
    assert found["path"].to_pylist() == ["x", "new\nline", "日本"]
    assert found["shard"].to_pylist() == [3, 3, 100000]
    assert found["message"].to_pylist()[0] == "message of x"
    assert found.schema.names == [*ERRORS.names, "shard"]


def test_errors_of_shards_that_are_being_added_do_not_count_yet(folder):
    part_files.write_errors(folder, 0, errors("a"), METADATA)
    part_files.write_errors(folder, 1, errors("b"), METADATA)
    assert part_files.read_errors(folder, 1)["path"].to_pylist() == ["a"]


def test_no_errors_at_all(folder):
    found = part_files.read_errors(folder, 100)
    assert found.num_rows == 0
    assert found.schema.names == [*ERRORS.names, "shard"]


def test_errors_open_as_one_table(folder):
    part_files.write_errors(folder, 0, errors(), METADATA)
    part_files.write_errors(folder, 1, errors("a", "b"), METADATA)
    assert pq.read_table(folder.join("errors")).schema.names == ERRORS.names
    assert json.loads(pq.read_schema(folder.join(error_name(1))).metadata[b"tlray"]) == METADATA


def test_errors_without_split_and_label(folder):
    table = pa.table({name: pa.array([None], pa.null()) for name in ERRORS.names})
    part_files.write_errors(folder, 0, table, METADATA)
    assert part_files.read_errors(folder, 100).to_pylist() == [{**dict.fromkeys(ERRORS.names), "shard": 0}]


def test_unfinished_error_files_are_not_read(folder):
    part_files.write_errors(folder, 0, errors("a"), METADATA)
    folder.write("errors/.part-00001.parquet.0123abcd.tmp", b"half")
    assert part_files.read_errors(folder, 100).num_rows == 1


@pytest.mark.parametrize("data", [b"", b"PAR1 and half of it"])
def test_a_damaged_error_file(folder, data):
    folder.write(error_name(0), data)
    with pytest.raises(JobError, match=re.escape(error_name(0))):
        part_files.read_errors(folder, 100)


# The whole set


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
    with pytest.raises(UserError, match=r"the format tlray-features/9; .* anew with `tlray extract`"):
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


def test_a_copy_of_another_shard_is_noticed(folder):
    """The same number of rows, but one shard is lost and one counted twice."""
    for shard in (0, 1):
        write(folder, numbers(4), shard=shard)
    folder.write(part_name(1), folder.read(part_name(0)))
    with pytest.raises(JobError, match="copy of shard 0"):
        part_files.reconcile(folder, [4, 4], JOB)


def test_errors_are_read_side_by_side(tmp_path):
    folder, storage = Folder.open(str(tmp_path)), SlowStorage()
    for shard in range(12):
        table = pa.table({name: [f"{name} {shard}"] for name in ERRORS.names})
        part_files.write_errors(folder, shard, table, METADATA)
    found = part_files.read_errors(storage.folder(tmp_path), 11)
    assert dict(zip(found["shard"].to_pylist(), found["path"].to_pylist(), strict=True)) == {
        shard: f"path {shard}" for shard in range(11)
    }
    assert storage.most > 5
