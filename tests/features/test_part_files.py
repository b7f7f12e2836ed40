"""Features and errors on storage: what is written is read, by anyone, and nothing else is taken for it."""

import json
import re
from collections.abc import Callable, Iterator

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.bad_files import damaged_parquet
from tests.support.feature_sets import JOB, METADATA, SHAPE, cut, numbers, read, rows, write, write_set
from tests.support.slow_storage import SlowStorage
from tlray.core.errors import JobError
from tlray.core.storage import Folder
from tlray.features import part_files
from tlray.features.feature_set import Rows
from tlray.features.part_files import ERRORS, error_name, part_name
from tlray.images.index import Index


@pytest.mark.parametrize("store", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(8,), SHAPE, (1, 1, 1)])
@pytest.mark.parametrize("count", [1, 32, 100])
def test_what_is_written_is_read(folder, store, shape, count):
    features = numbers(count, shape)
    write(folder, features, store=store)
    table = read(folder)
    assert table.select(["path", "split", "label"]).to_pylist() == rows(count).to_pylist()
    assert Rows.of(table).features.dtype == store
    np.testing.assert_array_equal(Rows.of(table).features, features.astype(store))


def test_one_file_is_written_of_this_schema(folder):
    write(folder, numbers(10), shard=7, store="float16")
    assert folder.names() == [part_name(7)] == ["part-00007.parquet"]
    schema = pq.read_schema(folder.join(part_name(7)))
    assert schema.names == ["path", "split", "label", "features"]
    assert schema.field("features").type == pa.fixed_shape_tensor(pa.float16(), SHAPE)
    assert [schema.field(i).type for i in range(3)] == [pa.string()] * 3
    assert json.loads(schema.metadata[b"tlray"]) == {**METADATA, "shard": 7}


def test_large_features_become_row_groups_of_a_bounded_size(folder):
    features = numbers(300, (32, 32, 32))  # 39 MB
    write(folder, features)
    with pq.ParquetFile(folder.join(part_name(0))) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert len(groups) > 1
    assert sum(groups) == 300
    assert max(groups) * features[0].nbytes < 24 << 20
    np.testing.assert_array_equal(Rows.of(read(folder)).features, features)
    write(folder, numbers(2500, (2,)))  # Reading is bounded too.
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


def test_parts_are_counted_and_read_in_their_order(folder):
    features = write_set(folder)
    assert part_files.count_rows(folder, [2, 0, 1], JOB) == [70, 50, 0]
    assert part_files.count_rows(folder, [], JOB) == []
    parts = Rows.join([Rows.of(table) for table in part_files.read_parts(Index.open(folder))], (0, *SHAPE))
    assert parts.paths == [f"{i:05d}.png" for i in range(120)]
    np.testing.assert_array_equal(parts.features, features)


# Other readers


READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    "pyarrow": lambda file: pq.read_table(file).to_pandas(),
    "pandas": pd.read_parquet,
    "polars": lambda file: pl.read_parquet(file).to_pandas(),
    "duckdb": lambda file: duckdb.sql(f"SELECT * FROM '{file}'").df(),
}


@pytest.mark.parametrize("store", ["float32", "float16"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.filterwarnings("ignore")  # polars says that it does not know the tensor type.
def test_everyone_reads_the_same_numbers(folder, store, reader):
    features = numbers(40)
    write(folder, features, store=store)
    frame = READERS[reader](folder.join(part_name(0)))
    assert frame["path"].tolist() == rows(40)["path"].to_pylist()
    values = np.stack([np.asarray(row) for row in frame["features"]])
    assert values.dtype.kind == "f"
    np.testing.assert_array_equal(values.reshape(40, -1), features.astype(store).reshape(40, -1))


# Files that are not of this set


def assert_refused(folder: Folder, shard: int = 0, *, counted: bool = True) -> None:
    """Reading it raises an error that names the file, and so does counting its rows."""
    with pytest.raises(JobError, match=re.escape(part_name(shard))):
        read(folder, shard)
    if counted:
        with pytest.raises(JobError, match=re.escape(part_name(shard))):
            part_files.count_rows(folder, [shard], JOB)


@pytest.mark.parametrize("how", ["empty", "text", "truncated", "overwritten"])
def test_a_damaged_part(folder, how):
    write(folder, numbers(100))
    folder.write(part_name(0), damaged_parquet(folder.read(part_name(0)))[how])
    assert_refused(folder, counted=how != "overwritten")  # Counting reads no more than the footer.
    assert_refused(folder, 1)  # It is missing.


@pytest.mark.parametrize("metadata", [{"job": {**JOB, "images": "/others"}}, {}, {"job": None}])
def test_a_part_of_another_job(folder, metadata):
    features = numbers(10)
    part_files.write_part(folder, 0, rows(10), cut(features), SHAPE, "float32", metadata)
    assert_refused(folder)
    pq.write_table(pa.table({"path": ["a"], "features": [1.0]}), folder.join(part_name(0)))
    assert_refused(folder)  # Of another program.


# Error files


def errors(*paths: str) -> pa.Table:
    table = pa.table({name: [f"{name} of {path}" for path in paths] for name in ERRORS.names}, ERRORS)
    return table.set_column(0, "path", pa.array(list(paths), pa.string()))


def test_errors_come_back_with_their_shard(folder):
    assert part_files.read_errors(folder, 100).num_rows == 0
    part_files.write_errors(folder, 0, errors(), METADATA)
    part_files.write_errors(folder, 3, errors("x", "new\nline"), METADATA)
    part_files.write_errors(folder, 100000, errors("日本"), METADATA)
    assert pq.read_table(folder.join("errors")).schema.names == ERRORS.names
    assert json.loads(pq.read_schema(folder.join(error_name(3))).metadata[b"tlray"]) == METADATA
    folder.write("errors/.part-00001.parquet.0123abcd.tmp", b"half")  # Nobody reads it.
    table = part_files.read_errors(folder, 100001)
    assert table["path"].to_pylist() == ["x", "new\nline", "日本"]
    assert table["shard"].to_pylist() == [3, 3, 100000]
    assert table["message"].to_pylist()[0] == "message of x"
    assert table.schema.names == part_files.read_errors(folder, 1).schema.names == [*ERRORS.names, "shard"]
    # Those of shards that are being added do not count yet.
    assert part_files.read_errors(folder, 4)["path"].to_pylist() == ["x", "new\nline"]


def test_errors_without_split_and_label(folder):
    table = pa.table({name: pa.array([None], pa.null()) for name in ERRORS.names})
    part_files.write_errors(folder, 0, table, METADATA)
    assert part_files.read_errors(folder, 100).to_pylist() == [{**dict.fromkeys(ERRORS.names), "shard": 0}]


@pytest.mark.parametrize("data", [b"", b"PAR1 and half of it"])
def test_a_damaged_error_file(folder, data):
    folder.write(error_name(0), data)
    with pytest.raises(JobError, match=re.escape(error_name(0))):
        part_files.read_errors(folder, 100)


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
        part_files.write_errors(folder, shard, errors(f"path {shard}"), METADATA)
    table = part_files.read_errors(storage.folder(tmp_path), 11)
    assert table["shard"].to_pylist() == list(range(11))
    assert table["path"].to_pylist() == [f"path {shard}" for shard in range(11)]
    assert storage.most["open"] > 5


# Rows of a part file that are not those of the index


def swapped(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)])


CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "another path": lambda table: table.set_column(
        0, "path", pa.array(["x.png", *table["path"].to_pylist()[1:]])
    ),
    "another split": lambda table: table.set_column(1, "split", pa.array(["test"] * len(table))),
    "another label": lambda table: table.set_column(2, "label", pa.array(["b"] * len(table))),
    "a row twice": lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)]),
    "another order": swapped,
    "a row less": lambda table: table.slice(1),
    "no last row": lambda table: table.slice(0, len(table) - 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_are_not_those_of_the_index_are_refused(folder, change):
    write_set(folder)
    index = Index.open(folder)
    assert sum(table.num_rows for table in part_files.read_parts(index)) == 120
    changed = CHANGES[change](rows(70, 50))
    part_files.write_part(folder, 2, changed, cut(numbers(len(changed))), SHAPE, "float32", METADATA)
    with pytest.raises(JobError, match=re.escape(f"{part_name(2)} has ")):
        list(part_files.read_parts(index))
    assert sum(table.num_rows for table in part_files.read_parts(index, 2)) == 50


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(folder, value):
    write_set(folder)
    features = numbers(70)
    features[5, 1, 1, 1] = value
    write(folder, features, shard=2, start=50)
    with pytest.raises(JobError, match=r"part-00002\.parquet has .* not finite, e\.g\. those of 00055\.png"):
        list(part_files.read_parts(Index.open(folder)))
