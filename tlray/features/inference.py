"""The pass over the images: shards are read and decoded by CPU tasks, put through a network by actors,
and each is written as one file. A shard whose file exists is done.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.cluster import nodes, session
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.features import bottleneck, feature_set
from tlray.features.bottleneck import Shard
from tlray.images import sandbox
from tlray.images.augment import Views
from tlray.images.bad_image import BadImage
from tlray.images.index import Index
from tlray.images.reader import ImageProbe, Reader
from tlray.models.compiled import Network

if TYPE_CHECKING:
    from ray.data import Dataset

Progress = Callable[[int, int], None]
"""Called with the images done and to do after each shard."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What every task and actor of one pass needs to know."""

    root: Folder
    """Of the images."""
    index: Index
    out: Folder
    image_size: int
    max_pixels: int
    """An image of more is bad."""
    batch_size: int
    store: str
    """What the output of the network is kept in: "float32" or "float16"."""
    metadata: Mapping[str, Any]
    """For every file; under "job" it holds what the index was started with."""
    packages: Mapping[str, str]
    """The versions that every process must have."""
    actors: tuple[int, int] | None = None
    """The least and the most that hold the network; None: see `nodes.pool`."""
    gpus_per_actor: float = 1.0
    max_bad_fraction: float = 1.0
    """Of `images`."""
    images: int = 0
    """All that the job is about; 0 stands for those of the index."""
    views: Views | None = None
    copies: int = 1
    """With `views`: so many of each image, which give a row (copies, *shape) of features."""


def finished(job: Pass) -> set[int]:
    """The shards that have a file."""
    return {shard for name in job.out.names() if (shard := feature_set.shard_of(name)) is not None}


def run(
    job: Pass,
    loader: Callable[[], Callable[[], Network]],
    progress: Progress,
    connected: session.Connected,
) -> list[Shard]:
    """Bring all shards that have no file to files, and list the images that are not listed yet meanwhile.

    Args:
        job: the pass.
        loader: called once Ray is connected; what it returns is called once in each actor.
        progress: called after each shard.
        connected: waits until Ray is there.

    Returns:
        What became of the shards, those of an earlier run left out.

    Raises:
        UserError: there is no Ray at that address, or it cannot do the job.
        JobError: more images are bad than `max_bad_fraction` allows, or a task failed for good.
    """
    done = finished(job)
    if job.index.complete and len(done) == len(job.index.shard_sizes):
        return []
    from tlray.features import shard_source  # noqa: F401 - takes time, while Ray starts.

    try:
        connected()
        pool = nodes.pool(job.actors, job.gpus_per_actor)
        nodes.check(job.packages, job.out, ImageProbe(job.root, job.index.first()))
    except UserError:
        if not done:  # Nothing was started: nothing is left behind.
            job.index.discard()
        raise
    return _run(job, done, loader(), pool, progress)


def _run(
    job: Pass, done: set[int], load_network: Callable[[], Network], pool: nodes.Pool, progress: Progress
) -> list[Shard]:
    import ray.data

    from tlray.features import shard_source

    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # Every row is a block: see `source.pack`.
    results = (
        shard_source.shards(job.index, done)
        .map_batches(
            _decode, fn_args=(job,), batch_size=None, batch_format="pyarrow", num_cpus=pool.decode_cpus
        )
        .map_batches(
            _NetworkActor,
            fn_constructor_args=(job, load_network),
            batch_size=1,  # Of shards, each of which is one row; on GPUs Ray wants it said.
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=pool.least, max_size=pool.most),
            # Not as many as decoding: Ray would fuse the two stages into one process.
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
    )
    # The listing in the thread: Ray Data must end where it began, or, with Ray gone, it ends the process.
    with ThreadPoolExecutor(1, thread_name_prefix="listing") as thread:
        listing = thread.submit(job.index.finish)
        try:
            found = _consume(results, job, done, progress)
            listing.result()
            return found
        except ray.exceptions.RayError as error:
            if listing.done():
                listing.result()  # That it failed made the rest fail.
            raise JobError(f"the job failed: {session.reason(error)}; run it again to go on") from error
        finally:
            job.index.stop()


def _consume(results: Dataset, job: Pass, done: set[int], progress: Progress) -> list[Shard]:
    """Run the dataset and follow what comes out of it."""
    found: list[Shard] = []
    images = errors = 0
    before = sum(job.index.shard_sizes[shard] for shard in done)
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for shard in (Shard(**row) for row in batch.to_pylist()):
            found.append(shard)
            images += shard.rows + shard.errors
            errors += shard.errors
        complete, total = job.index.complete, job.index.images - before
        progress(images, total if complete else max(total, images + 1))
        if complete:  # Or a bad folder at the beginning would end a job that is good on the whole.
            _check_bad(job, errors)
    return found


def reconcile(job: Pass) -> pa.Table:
    """Check that every image has become a row or an error, by what is in the files.

    Returns:
        All error rows, with the columns of `featureset.ERRORS`.

    Raises:
        JobError: an image is missing or is there twice, a file is damaged or of another job, or
            too many images are bad.
    """
    errors = feature_set.reconcile(job.out, job.index.shard_sizes, job.metadata["job"])
    _check_bad(job, errors.num_rows)
    return errors


def _check_bad(job: Pass, errors: int) -> None:
    """Raise JobError if more than the allowed fraction of all images is bad."""
    images, allowed = job.images or job.index.images, job.max_bad_fraction
    if errors > allowed * images:
        raise JobError(
            f"{errors} of {images} images are bad, more than --max-bad-fraction {allowed:g} allows; see "
            f"{job.out.uri}/errors; run again with a larger fraction to accept them (finished work is kept)"
        )


def told(job: Pass, done: list[Shard], errors: pa.Table, seconds: float) -> dict[str, Any]:
    """What a job tells of a pass that is finished, as JSON values.

    Returns:
        images, rows, errors, seconds, images_per_second (of this run), and what `verdict.judge` finds.
    """
    return {
        "images": job.index.images,
        "rows": job.index.images - errors.num_rows,
        "errors": errors.num_rows,
        "seconds": round(seconds, 3),
        "images_per_second": round(sum(shard.rows + shard.errors for shard in done) / seconds, 3),
        **bottleneck.judge(done),
    }


def _decode(row: pa.Table, job: Pass) -> pa.Table:
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
    read_seconds = decode_seconds = 0.0
    read_image = Reader(job.root)
    places = zip(*(listed[name].to_pylist() for name in ("path", "offset", "modified")), strict=True)
    with sandbox.decoding() as decode:
        for place, (path, offset, modified) in enumerate(places):
            started = read = time.perf_counter()
            try:
                data = read_image(path, offset, modified)
                read = time.perf_counter()
                pixels[place] = decode(data, size, job.max_pixels)
                if job.views:
                    plain = pixels[place, 0].copy()
                    pixels[place] = [job.views.view(plain, path, number) for number in range(job.copies)]
            except BadImage as bad:
                for name, column in errors.items():
                    column[place] = getattr(bad, name)
            read_seconds += read - started
            decode_seconds += time.perf_counter() - read
    for name, column in errors.items():
        rows = rows.append_column(name, pa.array(column, pa.string()))
    for name, seconds in (("read_seconds", read_seconds), ("decode_seconds", decode_seconds)):
        rows = rows.append_column(name, pa.array([seconds] * rows.num_rows))
    return shard_source.pack(
        rows.append_column("pixels", pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
    )


class _NetworkActor:
    """Holds the network; one call is one shard."""

    def __init__(self, job: Pass, load_network: Callable[[], Network]) -> None:
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
        errors = table.select(feature_set.ERRORS.names).filter(pa.array(~good))
        if errors.num_rows or shard == 0:  # The first always, so that errors/ opens as a table.
            feature_set.write_errors(job.out, shard, errors, job.metadata)
        else:
            job.out.remove(feature_set.error_name(shard))  # of a writer that did not come to the end
        pixels = table["pixels"].combine_chunks().to_numpy_ndarray()
        if errors.num_rows:
            pixels, rows = pixels[good], rows.filter(pa.array(good))
        self.seconds = 0.0
        # A model's classes are those of its output; else they are the labels that are here.
        metadata = {"classes": sorted(set(rows["label"].drop_null().to_pylist())), **job.metadata}
        features = self._features(pixels)
        feature_set.write_part(job.out, shard, rows, features, self.shape, job.store, metadata)
        done = Shard(
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
