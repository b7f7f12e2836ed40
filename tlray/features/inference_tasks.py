"""The tasks and actors of an inference job: they decode a shard, and run the network on it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.cluster import nodes
from tlray.core.config import InferenceConfig
from tlray.core.errors import JobError
from tlray.core.storage import Folder
from tlray.features import feature_set, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.images.augment import Views
from tlray.images.bad_image import BadImage
from tlray.images.index import Index, check_exists
from tlray.images.loader import ImageLoader
from tlray.images.reader import Place
from tlray.models.compiled import Network
from tlray.models.model import not_finite


@dataclass(frozen=True, kw_only=True)
class InferenceJob:
    """What every task and actor of a pass over images needs to know."""

    root: Folder
    """The folder to which the paths of the images are relative."""
    index: Index
    out: Folder
    """The folder for the part files."""
    settings: InferenceConfig
    image_size: int
    """The height and width of the network's input, in pixels."""
    batch_size: int
    """The number of images that go through the network at once."""
    store: str
    """The dtype in which the output of the network is stored, "float32" or "float16"."""
    metadata: Mapping[str, Any]
    """The metadata of every file; "job" in it is what the index was started with."""
    packages: Mapping[str, str]
    """The versions of packages that every process must have."""
    images: int = 0
    """The number of images of which a fraction may be bad; 0 stands for all images of the index."""
    retry_errors: bool = False
    """Whether a shard that has a part file is computed only as far as its rows are missing."""
    views: Views | None = None
    copies: int = 1
    """With `views`: the number of views of each image, whose row has features of shape (copies, *shape)."""


def pack(table: pa.Table) -> pa.Table:
    """Pack a table into a single value in a single row, so that Ray Data never splits or joins tables.

    Ray Data limits blocks by their size only; with such rows and a small limit, each block is one table.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.table({"shard": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])})


def unpack(row: pa.Table) -> pa.Table:
    """The table in a row that `pack` has made; the data is not copied."""
    return pa.ipc.open_stream(row["shard"][0].as_buffer()).read_all()


def decode_shard(row: pa.Table, job: InferenceJob) -> pa.Table:
    """Decode a shard: its rows with pixels, (size, size, 3), or with views (copies, size, size, 3).

    The row of a bad image has the error, and zeros as pixels.
    """
    nodes.agree(job.packages)
    listed = unpack(row)
    shard, stored = listed["shard"][0].as_py(), set[str]()
    if job.retry_errors and job.out.is_file(part_files.part_name(shard)):
        for table in part_files.read_shard(job.out, shard, job.index.job):
            stored.update(table["path"].to_pylist())
    size, count = job.image_size, listed.num_rows
    pixels = np.zeros((count, *((job.copies,) if job.views else ()), size, size, 3), np.uint8)
    errors: list[tuple[str | None, ...]] = [(None, None, None)] * count
    places = zip(*(listed[name].to_pylist() for name in Place._fields), strict=True)
    started = time.perf_counter()
    limits = job.settings.max_pixels, job.settings.seconds_per_image
    with ImageLoader(job.root, size, *limits, in_task=True) as load:
        for number, place in enumerate(starmap(Place, places)):
            if place.path in stored:
                continue
            try:
                # Without its size, an image is read as it is now.
                image = load(place._replace(size=None) if job.retry_errors else place)
                if job.views:
                    pixels[number] = [job.views.view(image, place.path, n) for n in range(job.copies)]
                else:
                    pixels[number] = image
            except BadImage as bad:
                errors[number] = bad.stage, bad.error, bad.message
    # Everything except reading counts as decoding, including the views and the start of a process.
    decode_seconds = time.perf_counter() - started - load.read_seconds
    columns = {name: listed[name] for name in ("path", "split", "label", "shard")}
    for name, values in zip(("stage", "error", "message"), zip(*errors, strict=True), strict=True):
        columns[name] = pa.array(values, pa.string())
    columns["stored"] = pa.array([path in stored for path in listed["path"].to_pylist()])
    columns |= {"read_seconds": [load.read_seconds] * count, "decode_seconds": [decode_seconds] * count}
    return pack(pa.table({**columns, "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)}))


class NetworkActor:
    """Holds the network; each call runs it on one shard and writes the shard's files."""

    def __init__(self, job: InferenceJob, load_network: Callable[[], Network]) -> None:
        import ray

        nodes.agree(job.packages)
        self.job = job
        context = ray.get_runtime_context()
        self.place = {
            "actor": context.get_actor_id(),
            "node": context.get_node_id(),
            "host": socket.gethostname(),
            "device": "GPU" if ray.get_gpu_ids() else "CPU",
        }
        self.network = load_network()
        nodes.check_gpu()
        # This compiles the network while the first images are decoded; one image is enough for the shape.
        self.shape = self.network(np.zeros((1, job.image_size, job.image_size, 3), np.uint8)).shape[1:]
        if job.views:
            self.shape = (job.copies, *self.shape)

    def __call__(self, row: pa.Table) -> pa.Table:
        started, clock = time.time(), time.perf_counter()
        job, table = self.job, unpack(row)
        shard = table["shard"][0].as_py()
        rows = table.select(["path", "split", "label"])
        good, stored = np.asarray(table["error"].is_null()), np.asarray(table["stored"])
        check_exists(job.out)
        errors = table.select(part_files.ERRORS.names).filter(pa.array(~good))
        has_part = job.retry_errors and job.out.is_file(part_files.part_name(shard))  # It may have no rows.
        if not has_part:
            self._write_errors(shard, errors)
        pixels = table["pixels"].combine_chunks().to_numpy_ndarray()
        if errors.num_rows or has_part:
            pixels, rows = pixels[good & ~stored], rows.filter(pa.array(good))
        self.seconds = 0.0
        # A model's metadata has the classes of its output; otherwise they are the labels in this shard.
        metadata = {"classes": sorted(set(rows["label"].drop_null().to_pylist())), **job.metadata}
        features = self._features(pixels, rows["path"].filter(pa.array(~stored[good])))
        if stored.any():
            features = self._merged(shard, features, stored[good])
        part_files.write_part(job.out, shard, rows, features, self.shape, job.store, metadata)
        if has_part:  # If this is killed before, the old error rows show that the shard must be tried again.
            self._write_errors(shard, errors)
        timing = ShardTiming(
            rows=rows.num_rows,
            errors=errors.num_rows,
            read_seconds=table["read_seconds"][0].as_py(),
            decode_seconds=table["decode_seconds"][0].as_py(),
            network_seconds=self.seconds,
            write_seconds=time.perf_counter() - clock - self.seconds,
            started=started,
            ended=time.time(),
            **self.place,
        )
        return pa.Table.from_pylist([vars(timing)])

    def _write_errors(self, shard: int, errors: pa.Table) -> None:
        if errors.num_rows or shard == 0:  # The first shard always has one, so that errors/ opens as a table.
            part_files.write_errors(self.job.out, shard, errors, self.job.metadata)
        else:
            self.job.out.remove(part_files.error_name(shard))  # An earlier attempt may have written it.

    def _merged(
        self, shard: int, computed: Iterator[npt.NDArray[Any]], stored: npt.NDArray[np.bool_]
    ) -> Iterator[npt.NDArray[Any]]:
        """The features of all rows of a shard: those of its part file, and those computed now."""
        tables = part_files.read_shard(self.job.out, shard, self.job.index.job)
        merged = np.empty((len(stored), *self.shape), self.job.store)
        merged[stored] = np.concatenate([feature_set.Rows.of(table).features for table in tables])
        if not stored.all():
            merged[~stored] = np.concatenate(list(computed))
        yield merged

    def _features(self, pixels: npt.NDArray[np.uint8], paths: pa.ChunkedArray) -> Iterator[npt.NDArray[Any]]:
        rows = max(1, self.job.batch_size // self.job.copies)
        for start in range(0, len(pixels), rows):
            clock = time.perf_counter()
            batch = pixels[start : start + rows]
            features = self.network(batch.reshape(-1, *batch.shape[-3:])).reshape(len(batch), *self.shape)
            with np.errstate(over="ignore"):
                stored = features.astype(self.job.store, copy=False)
            if not np.isfinite(stored).all():
                finite = np.isfinite(stored.reshape(len(stored), -1)).all(axis=1)
                path = paths[start + int(finite.argmin())].as_py()
                if model := self.job.metadata["job"].get("model"):
                    raise not_finite(model, path)
                raise JobError(
                    f"the features of {path} are not finite as {self.job.store}: check the weights, "
                    "or try --store float32 and --precision float32"
                )
            self.seconds += time.perf_counter() - clock
            yield stored
