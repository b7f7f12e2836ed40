"""The pass over the images: shards are read and decoded by CPU tasks, put through a network by actors,
and each is written as one file. A shard whose file exists is done.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa

from tlray.cluster import nodes, session
from tlray.core.errors import JobError, UserError
from tlray.core.results import InferenceCounts
from tlray.features import bottleneck, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.features.inference_tasks import InferenceJob, NetworkActor, decode_shard
from tlray.images.index_writer import IndexWriter
from tlray.images.reader import ImageProbe
from tlray.models.compiled import Network

if TYPE_CHECKING:
    from ray.data import Dataset

Progress = Callable[[int, int], None]
"""Called with the images done and to do after each shard."""


def finished(job: InferenceJob) -> set[int]:
    """The shards that have a file."""
    return {shard for name in job.out.names() if (shard := part_files.shard_of(name)) is not None}


def run(
    job: InferenceJob,
    writer: IndexWriter,
    loader: Callable[[], Callable[[], Network]],
    progress: Progress,
    connected: session.Connected,
) -> list[ShardTiming]:
    """Bring all shards that have no file to files, and list the images that are not listed yet meanwhile.

    Args:
        job: the pass.
        writer: of its index.
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
        pool = nodes.pool(job.settings.actor_range, job.settings.gpus_per_actor)
        nodes.check(job.packages, job.out, ImageProbe(job.root, job.index.first()))
    except UserError:
        if not done:  # Nothing was started: nothing is left behind.
            writer.discard()
        raise
    return _run(job, writer, done, loader(), pool, progress)


def _run(
    job: InferenceJob,
    writer: IndexWriter,
    done: set[int],
    load_network: Callable[[], Network],
    pool: nodes.Pool,
    progress: Progress,
) -> list[ShardTiming]:
    import ray.data

    from tlray.features import shard_source

    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # Every row is a block: see `source.pack`.
    results = (
        shard_source.shards(job.index, done)
        .map_batches(
            decode_shard, fn_args=(job,), batch_size=None, batch_format="pyarrow", num_cpus=pool.decode_cpus
        )
        .map_batches(
            NetworkActor,
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
        listing = thread.submit(writer.finish)
        try:
            found = _consume(results, job, done, progress)
            listing.result()
            return found
        except ray.exceptions.RayError as error:
            if listing.done():
                listing.result()  # That it failed made the rest fail.
            raise JobError(f"the job failed: {session.reason(error)}; run it again to go on") from error
        finally:
            writer.stop()


def _consume(results: Dataset, job: InferenceJob, done: set[int], progress: Progress) -> list[ShardTiming]:
    """Run the dataset and follow what comes out of it."""
    found: list[ShardTiming] = []
    images = errors = 0
    before = sum(job.index.shard_sizes[shard] for shard in done)
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for shard in (ShardTiming(**row) for row in batch.to_pylist()):
            found.append(shard)
            images += shard.rows + shard.errors
            errors += shard.errors
        complete, total = job.index.complete, job.index.images - before
        progress(images, total if complete else max(total, images + 1))
        if complete:  # Or a bad folder at the beginning would end a job that is good on the whole.
            _check_bad(job, errors)
    return found


def reconcile(job: InferenceJob) -> pa.Table:
    """Check that every image has become a row or an error, by what is in the files.

    Returns:
        All error rows, with the columns of `part_files.ERRORS`.

    Raises:
        JobError: an image is missing or is there twice, a file is damaged or of another job, or
            too many images are bad.
    """
    errors = part_files.reconcile(job.out, job.index.shard_sizes, job.metadata["job"])
    _check_bad(job, errors.num_rows)
    return errors


def _check_bad(job: InferenceJob, errors: int) -> None:
    """Raise JobError if more than the allowed fraction of all images is bad."""
    images, allowed = job.images or job.index.images, job.settings.max_bad_fraction
    if errors > allowed * images:
        raise JobError(
            f"{errors} of {images} images are bad, more than --max-bad-fraction {allowed:g} allows; see "
            f"{job.out.uri}/errors; run again with a larger fraction to accept them (finished work is kept)"
        )


def counts(job: InferenceJob, done: list[ShardTiming], errors: pa.Table, seconds: float) -> InferenceCounts:
    """What became of the images of a finished pass.

    Args:
        job: the pass.
        done: the shards of this run.
        errors: all error rows.
        seconds: that this run took.
    """
    time = bottleneck.inference_time(done)
    return InferenceCounts(
        images=job.index.images,
        rows=job.index.images - errors.num_rows,
        errors=errors.num_rows,
        seconds=round(seconds, 3),
        images_per_second=round(sum(shard.rows + shard.errors for shard in done) / seconds, 3),
        limited_by=bottleneck.judge(time, seconds),
        time=time,
    )
