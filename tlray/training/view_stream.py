"""Streams the features of new random views into a training worker in every epoch, without storing them.

Ray Data decodes and augments images in CPU tasks and runs the frozen network in an actor. Each worker has a
stream of exactly its own rows in their order, so nothing needs to distribute rows to workers.
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

_ACTOR_CPUS = 0.5
"""The CPUs of the actor. If decoding had the same number, Ray would fuse both into one process."""
STREAM_CPUS = 1 + _ACTOR_CPUS
"""The CPUs that a stream needs at least: for one decoding task and the actor."""
_BLOCK_ROWS, _BATCH = 128, 32
"""The rows of a block, and those that go through the network at once."""
_MOST_BLOCKS = 10_000
"""The blocks of one run of Ray Data, which keeps a record of each."""
_Step = tuple[int, int, npt.NDArray[np.float32]]
"""The epoch and step of a batch, and its features, (slots, *shape)."""


@dataclass(frozen=True, kw_only=True)
class ViewSource:
    """The training images and the network, as every stream needs them."""

    root: Folder
    """The root of the images."""
    images: Any
    """A reference to a table in Ray's object store: the `Place` of each training row."""
    views: Views
    image_size: int
    """The side length of the views, in pixels."""
    limits: tuple[int, float]
    """The most pixels of an image, and the most seconds to decode it."""
    load_network: Callable[[], Network]


class ViewStream:
    """The features of one worker's batches, in the order of the training."""

    def __init__(self, source: ViewSource, batches: GlobalBatches, epochs: range) -> None:
        self._steps = _stream(source, batches, epochs)
        self.waited = 0.0
        """Seconds spent waiting for features."""

    def take(self, epoch: int, step: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the features of the next step, (rows, *shape); the arguments must be those of that step."""
        clock = time.perf_counter()
        next_epoch, next_step, features = next(self._steps)
        self.waited += time.perf_counter() - clock
        if (next_epoch, next_step, len(features)) != (epoch, step, len(rows)):
            raise JobError(f"expected views of epoch {epoch}, step {step}; got {next_epoch}, {next_step}")
        return features


def _stream(source: ViewSource, batches: GlobalBatches, epochs: range) -> Iterator[_Step]:
    steps = max(1, _BLOCK_ROWS // batches.slots)
    blocks = (
        {"epoch": epoch, "first": first, "end": min(first + steps, batches.steps)}
        for epoch in epochs
        for first in range(0, batches.steps, steps)
    )
    while chunk := list(islice(blocks, _MOST_BLOCKS)):
        yield from _run(source, batches, chunk)


def _run(source: ViewSource, batches: GlobalBatches, blocks: list[dict[str, int]]) -> Iterator[_Step]:
    import ray.data

    from tlray.features.inference_tasks import unpack

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # Ray Data must not split the pixels of a block.
    context.execution_options.preserve_order = True
    gpus = 0.5 if ray.cluster_resources().get("GPU", 0) else 0
    results = (
        ray.data.from_items(blocks, override_num_blocks=len(blocks))
        .map_batches(_decode, fn_args=(source, batches), batch_size=None, num_cpus=1)
        .map_batches(
            _FrozenActor,
            fn_constructor_args=(source.load_network,),
            batch_size=1,  # Each block is one row. With GPUs, Ray Data insists on a batch size.
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=_ACTOR_CPUS,
            num_gpus=gpus,
        )
    )
    rows = results.iter_batches(batch_size=None, batch_format="pyarrow")
    for block, row in zip(blocks, rows, strict=True):
        features = unpack(row)["features"].combine_chunks().to_numpy_ndarray()
        start = 0
        for step in range(block["first"], block["end"]):
            end = start + len(batches.slice(np.arange(batches.rows), step)[0])
            yield block["epoch"], step, features[start:end]
            start = end


def _decode(batch: dict[str, npt.NDArray[Any]], source: ViewSource, batches: GlobalBatches) -> pa.Table:
    """Return the pixels of the views of a block; padding rows stay black."""
    import ray

    from tlray.features.inference_tasks import pack

    (epoch,), (first,), (end,) = batch["epoch"], batch["first"], batch["end"]
    order = batches.order(int(epoch))
    slices = [batches.slice(order, step) for step in range(first, end)]
    rows, weights = (np.concatenate(arrays) for arrays in zip(*slices, strict=True))
    size = source.image_size
    pixels = np.zeros((len(rows), size, size, 3), np.uint8)
    images = ray.get(source.images).take(rows).to_pylist()
    with ImageLoader(source.root, size, *source.limits, in_task=True) as load:
        # Read in the order of the listing, because images that are close in an archive are read together.
        for index in np.argsort(rows):
            if not weights[index]:
                continue
            place = Place(**images[index])
            try:
                image = load(place)
            except BadImage as bad:
                raise JobError(f"{place.path} can no longer be decoded: {bad}") from bad
            pixels[index] = source.views.view(image, place.path, int(epoch))
    return pack(pa.table({"pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)}))


class _FrozenActor:
    """An actor that runs the frozen network over blocks of pixels."""

    def __init__(self, load_network: Callable[[], Network]) -> None:
        self.network = load_network()
        nodes.check_gpu()

    def __call__(self, row: pa.Table) -> pa.Table:
        from tlray.features.inference_tasks import pack, unpack

        pixels = unpack(row)["pixels"].combine_chunks().to_numpy_ndarray()
        batches = (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH))
        features = np.concatenate([self.network(batch) for batch in batches])
        return pack(pa.table({"features": pa.FixedShapeTensorArray.from_numpy_ndarray(features)}))
