"""The shards of a job as a Ray Data source, and how a shard travels through Ray Data: as one row."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata

from tlray.cluster.nodes import READ_CPUS
from tlray.images.index import Index


def shards(index: Index, done: Container[int]) -> Dataset:
    """A dataset with one row for each shard that is not done, as `pack` makes it of the rows of the index.

    They come while the index still grows, so that work begins before all images are listed.
    """
    return read_datasource(_Shards(index, done), num_cpus=READ_CPUS, override_num_blocks=1)


def pack(table: pa.Table) -> pa.Table:
    """A table as a single value in a single row, so that nothing splits it or joins it to another.

    With blocks of one row each, Ray Data hands them on one by one: it can end a block early by its size only.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.table({"shard": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])})


def unpack(row: pa.Table) -> pa.Table:
    """The table in a row that `pack` made, without copying it."""
    return pa.ipc.open_stream(row["shard"][0].as_buffer()).read_all()


class _Shards(Datasource):
    def __init__(self, index: Index, done: Container[int]) -> None:
        super().__init__()
        self.index, self.done = index, done

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        index, done = self.index, self.done

        def read() -> Iterator[pa.Table]:
            yield from map(pack, index.shards(done))

        return [
            ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))
        ]
