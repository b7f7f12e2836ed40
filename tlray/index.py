"""The list of all images of a job, cut into shards: written once, so that membership never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.errors import JobError, UserError
from tlray.listing import Listed
from tlray.provenance import read_stamp, stamp
from tlray.storage import Folder

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", "UTC")),
        ("shard", pa.int32()),
    ]
)
NAME = "index/part-00000.parquet"
_SHARDS_PER_GROUP = 64
"""Shards in one row group, so that the task of a shard reads little more than its own rows."""
_FIRST, _LATER = 128, 1024
"""Images in a shard of the first row group and of the later ones: a small set is still spread
over many tasks, a large one makes files of a sensible size, and the total need not be known."""


@dataclass(frozen=True)
class Index:
    """The written index of a feature set; small enough to be sent to every task."""

    folder: Folder
    stamp: Mapping[str, Any]
    """What the job was started with."""
    shard_sizes: tuple[int, ...] = field(repr=False)

    @property
    def images(self) -> int:
        return sum(self.shard_sizes)

    @classmethod
    def start(
        cls,
        folder: Folder,
        images: Iterable[Listed],
        batch_size: int,
        job: Mapping[str, Any],
        copies: int = 1,
    ) -> Index:
        """Begin a job in a folder, or go on with the same job there.

        Args:
            folder: that the job writes to.
            images: listed and written down for a new job; not looked at when the job goes on.
            batch_size: of the network; a shard is a multiple of it.
            job: JSON values that say all that the job's result depends on.
            copies: how many rows of the network's input an image makes; shards have so many fewer images.

        Raises:
            UserError: the folder holds another job or other files, or there is no image; nothing
                was written.
        """
        if folder.is_file(NAME):
            index = cls.open(folder)
            if index.stamp != job:
                raise UserError(
                    f"{folder.uri} holds another job ({', '.join(_differences(index.stamp, job))}): "
                    "choose another folder, or remove this one"
                )
            return index
        # A listing that was killed leaves no more than a temporary file.
        strangers = [name for name in folder.names() if name != "index" or folder.is_file(name)]
        if not strangers:
            strangers = [f"index/{name}" for name in folder.names("index") if not name.endswith(".tmp")]
        if strangers:
            raise UserError(
                f"{folder.uri} is not empty and is no job of tlray (it holds {', '.join(strangers[:3])}"
                f"{', ...' if len(strangers) > 3 else ''}): choose a new folder"
            )
        try:
            return cls._write(folder, images, batch_size, job, copies)
        except BaseException as error:
            folder.remove("index")
            if not isinstance(error, OSError):
                raise
            raise UserError(f"cannot write to {folder.uri}: {error.strerror or error}") from error

    @classmethod
    def _write(
        cls, folder: Folder, images: Iterable[Listed], batch_size: int, job: Mapping[str, Any], copies: int
    ) -> Index:
        rows = iter(images)
        first = next(rows)  # Without any image this raises before there is a file.
        schema = SCHEMA.with_metadata(stamp(job))
        with folder.writing(NAME) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            for group in _groups(chain([first], rows), batch_size, copies):
                columns = zip(*group, strict=True)
                arrays = [
                    pa.array(column, type_) for column, type_ in zip(columns, SCHEMA.types, strict=True)
                ]
                writer.write_table(pa.table(arrays, schema=schema), row_group_size=len(group))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Folder) -> Index:
        """Open the index of a job that was started before.

        Raises:
            JobError: the file is not an index.
        """
        try:
            with folder.filesystem.open_input_file(folder.join(NAME)) as stream:
                file = pq.ParquetFile(stream)
                if not file.schema_arrow.equals(SCHEMA):
                    raise ValueError(f"columns {file.schema_arrow.names}, expected {SCHEMA.names}")
                sizes: list[int] = []
                for batch in file.iter_batches(columns=["shard"]):
                    for count in pc.value_counts(batch["shard"]).to_pylist():
                        shard = count["values"]
                        sizes.extend([0] * (shard + 1 - len(sizes)))
                        sizes[shard] += count["counts"]
                return cls(folder, read_stamp(file.schema_arrow.metadata), tuple(sizes))
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            raise JobError(
                f"{folder.join(NAME)} cannot be read: {error}; if it is damaged, remove {folder.uri}"
            ) from error

    def rows(self, shard: int) -> pa.Table:
        """The rows of one shard, in the order of the listing."""
        with self.folder.filesystem.open_input_file(self.folder.join(NAME)) as stream:
            group = pq.ParquetFile(stream).read_row_group(shard // _SHARDS_PER_GROUP)
        return group.filter(pc.field("shard") == shard)

    def count(self, *columns: str) -> Counter[tuple[str | None, ...]]:
        """How many images there are of each combination of values of these columns."""
        counts: Counter[tuple[str | None, ...]] = Counter()
        with self.folder.filesystem.open_input_file(self.folder.join(NAME)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=columns):
                groups = pa.table(batch).group_by(list(columns)).aggregate([([], "count_all")])
                for row in groups.to_pylist():
                    counts[tuple(row[name] for name in columns)] += row["count_all"]
        return counts


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*there, *asked}):
        old, new = there.get(name), asked.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new)
        elif old != new:
            yield f"{name} {old}, not {new}"


def _groups(rows: Iterator[Listed], batch_size: int, copies: int) -> Iterator[list[tuple[Any, ...]]]:
    """Row groups: the listed rows, each with its shard."""
    shard = 0
    group: list[tuple[Any, ...]] = []
    in_shard = 0
    for row in rows:
        size = max(1, (_FIRST if shard < _SHARDS_PER_GROUP else _LATER) // copies)
        if in_shard >= -(-size // batch_size) * batch_size:
            shard, in_shard = shard + 1, 0
            if shard % _SHARDS_PER_GROUP == 0:
                yield group
                group = []
        group.append((*row, shard))
        in_shard += 1
    yield group
