"""Features of new random views in every epoch, streamed into a training worker; nothing is stored.

Ray Data decodes and augments in CPU tasks and runs the frozen network in an actor. Each worker has a
stream of its own, of exactly its rows in exactly their order, so that nothing has to be dealt out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.cluster import nodes
from tlray.core.errors import JobError
from tlray.core.storage import Folder
from tlray.images.augment import Views
from tlray.images.bad_image import BadImage
from tlray.images.loader import ImageLoader
from tlray.images.reader import Place
from tlray.models.compiled import Network
from tlray.training.worker.batches import GlobalBatches

ACTOR_CPUS = 0.5
"""Not 1, as decoding: Ray would fuse the two stages into one process."""
STREAM_CPUS = 1 + ACTOR_CPUS
"""What a stream needs at least: one task that decodes, and the actor."""
_BLOCK_ROWS = 128
_MOST_BLOCKS = 10_000
"""In one run of Ray Data, which keeps a record of each."""


@dataclass(frozen=True, kw_only=True)
class ViewSource:
    """What every stream needs to know of the training images."""

    root: Folder
    images: Any
    """Reference to a table in Ray's object store: path, offset and modified of each training row."""
    views: Views
    image_size: int
    max_pixels: int
    load_network: Callable[[], Network]


class ViewStream:
    """The features of one worker's batches, in their order."""

    def __init__(self, source: ViewSource, batches: GlobalBatches, epochs: range) -> None:
        self._features = _stream(source, batches, epochs)
        self.waited = 0.0
        """Seconds that were spent waiting for features."""

    def take(self, epoch: int, step: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The features of the next step, which must be this one."""
        clock = time.perf_counter()
        found_epoch, found_step, features = next(self._features)
        self.waited += time.perf_counter() - clock
        if (found_epoch, found_step, len(features)) != (epoch, step, len(rows)):
            raise JobError(f"views of {(epoch, step)} expected, and {(found_epoch, found_step)} came")
        return features


def _stream(
    source: ViewSource, batches: GlobalBatches, epochs: range
) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
    """The epoch, step and features of every step."""
    steps = max(1, _BLOCK_ROWS // batches.slots)
    blocks = (
        {"epoch": epoch, "first": first, "end": min(first + steps, batches.steps)}
        for epoch in epochs
        for first in range(0, batches.steps, steps)
    )
    while some := list(islice(blocks, _MOST_BLOCKS)):
        yield from _run(source, batches, some)


def _run(
    source: ViewSource, batches: GlobalBatches, blocks: list[dict[str, int]]
) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
    import ray.data

    from tlray.features.inference_tasks import unpack

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # A block is decoded as a whole.
    context.execution_options.preserve_order = True
    gpus = 0.5 if ray.cluster_resources().get("GPU", 0) else 0
    results = (
        ray.data.from_items(blocks, override_num_blocks=len(blocks))
        .map_batches(_decode, fn_args=(source, batches), batch_size=None, num_cpus=1)
        .map_batches(
            _FrozenActor,
            fn_constructor_args=(source.load_network,),
            batch_size=1,  # Of blocks, each of which is one row; on GPUs Ray wants it said.
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=ACTOR_CPUS,
            num_gpus=gpus,
        )
    )
    found = results.iter_batches(batch_size=None, batch_format="pyarrow")
    for block, row in zip(blocks, found, strict=True):
        features = unpack(row)["features"].combine_chunks().to_numpy_ndarray()
        start = 0
        for step in range(block["first"], block["end"]):
            rows = len(batches.slice(np.arange(batches.rows), step)[0])
            yield block["epoch"], step, features[start : start + rows]
            start += rows


def _decode(batch: dict[str, npt.NDArray[Any]], source: ViewSource, batches: GlobalBatches) -> pa.Table:
    """The views of a block of steps, as pixels."""
    import ray

    from tlray.features.inference_tasks import pack

    (epoch,), (first,), (end,) = batch["epoch"], batch["first"], batch["end"]
    order = batches.order(int(epoch))
    rows = np.concatenate([batches.slice(order, step)[0] for step in range(first, end)])
    weights = np.concatenate([batches.slice(order, step)[1] for step in range(first, end)])
    size = source.image_size
    pixels = np.zeros((len(rows), size, size, 3), np.uint8)
    images = ray.get(source.images).take(rows).to_pylist()
    with ImageLoader(source.root, size, source.max_pixels, in_task=True) as load:
        # In the order of the listing: what is near in an archive is read together.
        for row in np.argsort(rows):
            if not weights[row]:
                continue
            place = Place(**images[row])
            try:
                plain = load(place)
            except BadImage as bad:
                reason = f"could be decoded before training and cannot now: {bad}"
                raise JobError(f"{place.path} {reason}") from bad
            pixels[row] = source.views.view(plain, place.path, int(epoch))
    return pack(pa.table({"pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)}))


class _FrozenActor:
    """Holds the frozen network."""

    def __init__(self, load_network: Callable[[], Network]) -> None:
        self.network = load_network()
        nodes.check_gpu()

    def __call__(self, row: pa.Table) -> pa.Table:
        from tlray.features.inference_tasks import pack, unpack

        pixels = unpack(row)["pixels"].combine_chunks().to_numpy_ndarray()
        features = np.concatenate([self.network(pixels[n : n + 32]) for n in range(0, len(pixels), 32)])
        return pack(pa.table({"features": pa.FixedShapeTensorArray.from_numpy_ndarray(features)}))
