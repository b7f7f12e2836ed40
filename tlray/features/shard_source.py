"""The shards of a job as a Ray Data source."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata

from tlray.cluster.nodes import READ_CPUS
from tlray.features.inference_tasks import pack
from tlray.images.index import Index


def shards(index: Index, done: Container[int]) -> Dataset:
    """A dataset with one row for each shard that is not done: its rows in the index, packed by `pack`.

    It yields shards while the index still grows, so that work begins before all images are listed.
    """
    return read_datasource(_Shards(index, done), num_cpus=READ_CPUS, override_num_blocks=1)


class _Shards(Datasource):
    def __init__(self, index: Index, done: Container[int]) -> None:
        super().__init__()
        self.index, self.done = index, done

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        index, done = self.index, self.done
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(lambda: map(pack, index.shards(done)), metadata)]
