"""What a task or actor of an inference job does: decode a shard, or put it through the network."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.cluster import nodes
from tlray.core.config import InferenceConfig
from tlray.core.errors import JobError
from tlray.core.storage import Folder
from tlray.features import part_files
from tlray.features.bottleneck import ShardTiming
from tlray.images.augment import Views
from tlray.images.bad_image import BadImage
from tlray.images.index import Index
from tlray.images.loader import ImageLoader
from tlray.images.reader import Place
from tlray.models.compiled import Network

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class InferenceJob:
    """What every task and actor of one pass over images needs to know."""

    root: Folder
    """Of the images."""
    index: Index
    out: Folder
    """Where the part files go."""
    settings: InferenceConfig
    image_size: int
    """In pixels."""
    batch_size: int
    """Images that go through the network at once."""
    store: str
    """What the output of the network is kept in: "float32" or "float16"."""
    metadata: Mapping[str, Any]
    """For every file; under "job" it holds what the index was started with."""
    packages: Mapping[str, str]
    """The versions that every process must have."""
    images: int = 0
    """Images of which a fraction may be bad; 0 stands for those of the index."""
    views: Views | None = None
    copies: int = 1
    """With `views`: so many of each image, which give a row (copies, *shape) of features."""


def decode_shard(row: pa.Table, job: InferenceJob) -> pa.Table:
    """A shard's rows with their pixels, (size, size, 3) or with views (copies, size, size, 3).

    A bad image has its error and no pixels worth reading.
    """
    from tlray.features import shard_source

    nodes.agree(job.packages)
    listed = shard_source.unpack(row)
    rows = listed.select(["path", "split", "label", "shard"])
    size = job.image_size
    copies = (job.copies,) if job.views else ()
    pixels = np.zeros((rows.num_rows, *copies, size, size, 3), np.uint8)
    errors: dict[str, list[str | None]] = {
        name: [None] * rows.num_rows for name in ("stage", "error", "message")
    }
    places = zip(*(listed[name].to_pylist() for name in Place._fields), strict=True)
    started = time.perf_counter()
    with ImageLoader(job.root, size, job.settings.max_pixels, in_task=True) as load:
        for row_number, place in enumerate(starmap(Place, places)):
            try:
                plain = load(place)
                if job.views:
                    pixels[row_number] = [job.views.view(plain, place.path, n) for n in range(job.copies)]
                else:
                    pixels[row_number] = plain
            except BadImage as bad:
                for name, column in errors.items():
                    column[row_number] = getattr(bad, name)
    # All that is not reading counts as decoding: the views as well, and the start of a process.
    decode_seconds = time.perf_counter() - started - load.read_seconds
    for name, column in errors.items():
        rows = rows.append_column(name, pa.array(column, pa.string()))
    for name, seconds in (("read_seconds", load.read_seconds), ("decode_seconds", decode_seconds)):
        rows = rows.append_column(name, pa.array([seconds] * rows.num_rows))
    return shard_source.pack(
        rows.append_column("pixels", pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
    )


class NetworkActor:
    """Holds the network; one call is one shard."""

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
        # Compiles it, while the first images are decoded; one image tells the shape as well as many.
        self.shape = self.network(np.zeros((1, job.image_size, job.image_size, 3), np.uint8)).shape[1:]
        if job.views:
            self.shape = (job.copies, *self.shape)

    def __call__(self, row: pa.Table) -> pa.Table:
        from tlray.features import shard_source

        started, clock = time.time(), time.perf_counter()
        job, table = self.job, shard_source.unpack(row)
        shard = table["shard"][0].as_py()
        rows = table.select(["path", "split", "label"])
        good = np.asarray(table["error"].is_null())
        errors = table.select(part_files.ERRORS.names).filter(pa.array(~good))
        if errors.num_rows or shard == 0:  # The first always, so that errors/ opens as a table.
            part_files.write_errors(job.out, shard, errors, job.metadata)
        else:
            job.out.remove(part_files.error_name(shard))  # of a writer that did not come to the end
        pixels = table["pixels"].combine_chunks().to_numpy_ndarray()
        if errors.num_rows:
            pixels, rows = pixels[good], rows.filter(pa.array(good))
        self.seconds = 0.0
        # A model's classes are those of its output; else they are the labels that are here.
        metadata = {"classes": sorted(set(rows["label"].drop_null().to_pylist())), **job.metadata}
        features = self._features(pixels)
        part_files.write_part(job.out, shard, rows, features, self.shape, job.store, metadata)
        done = ShardTiming(
            rows=len(pixels),
            errors=errors.num_rows,
            read_seconds=table["read_seconds"][0].as_py(),
            decode_seconds=table["decode_seconds"][0].as_py(),
            network_seconds=self.seconds,
            write_seconds=time.perf_counter() - clock - self.seconds,
            started=started,
            ended=time.time(),
            **self.place,
        )
        return pa.Table.from_pylist([vars(done)])

    def _features(self, pixels: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[Any]]:
        rows = max(1, self.job.batch_size // self.job.copies)
        for start in range(0, len(pixels), rows):
            clock = time.perf_counter()
            some = pixels[start : start + rows]
            features = self.network(some.reshape(-1, *some.shape[-3:])).reshape(len(some), *self.shape)
            with np.errstate(over="ignore"):
                kept = features.astype(self.job.store, copy=False)
            if not np.isfinite(kept).all():
                raise JobError(
                    f"some features are not finite as {self.job.store}: look at the weights, "
                    "or try --store float32 and --precision float32"
                )
            self.seconds += time.perf_counter() - clock
            yield kept
