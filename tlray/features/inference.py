"""Runs a network over images: tasks decode shards, actors compute them. A shard whose file exists is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import pyarrow as pa

from tlray.cluster import nodes, session
from tlray.core.config import ExtractConfig
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import MANIFEST
from tlray.core.results import InferenceCounts
from tlray.core.storage import Folder
from tlray.features import bottleneck, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.features.inference_tasks import InferenceJob, NetworkActor, decode_shard
from tlray.images.account import Announce
from tlray.images.index import check_exists, remove_index
from tlray.images.index_writer import IndexWriter
from tlray.images.reader import ImageProbe
from tlray.models.compiled import Network

if TYPE_CHECKING:
    from ray.data import Dataset

_THREADS = 16

Progress = Callable[[int, int], None]
"""Called after each shard with two numbers of images: those that this run has done, and all it has to do."""
_LOOK_SECONDS = 1
"""Seconds of listing before the images are announced and the work begins; Ray takes longer to start."""


def run(
    job: InferenceJob,
    writer: IndexWriter,
    loader: Callable[[], Callable[[], Network]],
    progress: Progress,
    connected: session.Connected,
    announce: Announce = lambda account: None,
) -> list[ShardTiming]:
    """Write the files of all shards that have none, and list the remaining images at the same time.

    Args:
        job: the images, and what to do with them.
        writer: lists the remaining images in the job's index.
        loader: called when Ray is connected; it returns the function that loads the network in each actor.
        progress: called after each shard.
        connected: waits until Ray is connected.
        announce: called with the account of what is listed before the first image is decoded, if the index
            has one.

    Returns:
        The timings of the shards that this call has written.

    Raises:
        UserError: there is no Ray at the address, it cannot do the job, or the images cannot be listed.
        JobError: more images are bad than `max_bad_fraction` allows, or a task failed every time.
    """
    done = {shard for name in job.out.names() if (shard := part_files.shard_of(name)) is not None}
    is_new = not done
    if job.retry_errors:
        done -= set(part_files.read_errors(job.out, len(job.index.shard_sizes))["shard"].to_pylist())
    if job.index.complete and len(done) == len(job.index.shard_sizes):
        return []
    # Only the listing runs in a thread: Ray Data must end in the thread that started it. Otherwise it ends
    # the process when Ray is gone.
    with ThreadPoolExecutor(1, thread_name_prefix="listing") as thread:
        listing, begun = thread.submit(writer.finish), time.monotonic()
        # These imports are slow; Ray starts meanwhile.
        import ray

        from tlray.features import shard_source  # noqa: F401 - for _stages

        try:
            try:
                connected()  # Before this, Ray may mute stderr.
                _announce(listing, begun, writer, announce, is_new)
                pool = nodes.pool(job.settings.actor_range, job.settings.gpus_per_actor)
                nodes.check(job.packages, job.out, ImageProbe(job.root, job.index.first()))
            except UserError:
                if is_new:  # The job did not start, so it must leave nothing behind.
                    writer.stop()
                    wait([listing])
                    writer.discard()
                raise
            if job.retry_errors:  # The set is complete again when its manifest is written again.
                job.out.remove(MANIFEST)
            results = _stages(job, done, loader(), pool)
            timings = _consume(results, job, done, progress)
            listing.result()
            return timings
        except ray.exceptions.RayError as error:
            check_exists(job.out)
            if listing.done():
                listing.result()  # If the listing has failed, that is why the tasks failed.
            raise JobError(f"the job failed: {session.reason(error)}; run it again to go on") from error
        finally:
            writer.stop()


def _announce(
    listing: Future[None], begun: float, writer: IndexWriter, announce: Announce, is_new: bool
) -> None:
    """Announce what is listed a moment after the listing has begun; raise the error of a failed listing."""
    if writer.account() is None:
        return
    wait([listing], max(0, begun + _LOOK_SECONDS - time.monotonic()))
    if listing.done() and isinstance(error := listing.exception(), JobError):
        # The JobError also says what to remove, which a new job removes itself.
        raise error.__cause__ if is_new and isinstance(error.__cause__, UserError) else error
    if (account := writer.account()) is not None:
        announce(account)


def _stages(
    job: InferenceJob, done: set[int], load_network: Callable[[], Network], pool: nodes.Pool
) -> Dataset:
    import ray.data

    from tlray.features import shard_source

    # A dataset copies the context when it is made, so these come first.
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # Every row becomes a block: see `pack`.
    decoded = shard_source.shards(job.index, done).map_batches(
        decode_shard, fn_args=(job,), batch_size=None, batch_format="pyarrow", num_cpus=pool.decode_cpus
    )
    return decoded.map_batches(
        NetworkActor,
        fn_constructor_args=(job, load_network),
        batch_size=1,  # A row is a whole shard. With GPUs, Ray requires a batch size.
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=pool.least, max_size=pool.most),
        # If decoding had as many CPUs, Ray would fuse the two stages into one process.
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )


def _consume(results: Dataset, job: InferenceJob, done: set[int], progress: Progress) -> list[ShardTiming]:
    """Run the dataset, and report the progress of its results."""
    timings: list[ShardTiming] = []
    images = errors = 0
    before = sum(job.index.shard_sizes[shard] for shard in done)
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for shard in (ShardTiming(**row) for row in batch.to_pylist()):
            timings.append(shard)
            images += shard.rows + shard.errors
            errors += shard.errors
        complete, total = job.index.complete, job.index.images - before
        progress(images, total if complete else max(total, images + 1))
        if complete:  # Before that, a bad folder at the beginning could fail a job that is good as a whole.
            _check_bad(job, errors)
    return timings


def remove(out: Folder) -> None:
    """Remove the files of a job, and last the index, so that the job can go on if this is interrupted."""
    with ThreadPoolExecutor(_THREADS) as pool:  # An object store takes its time for each file.
        list(pool.map(out.remove, (name for name in out.names() if part_files.shard_of(name) is not None)))
    out.remove("errors")
    remove_index(out)
    out.sweep()
    out.remove_empty()


def reconcile(job: InferenceJob) -> pa.Table:
    """Check in the files that every image has become a row or an error; returns all error rows.

    Raises:
        JobError: an image is missing or occurs twice, a file is damaged or belongs to another job, or too
            many images are bad.
    """
    try:
        errors = part_files.reconcile(job.out, job.index.shard_sizes, job.metadata["job"])
    except JobError:
        check_exists(job.out)
        raise
    _check_bad(job, errors.num_rows)
    return errors


def _check_bad(job: InferenceJob, errors: int) -> None:
    images, allowed = job.images or job.index.images, job.settings.max_bad_fraction
    if errors > allowed * images:
        retry = "mend them and run again with --retry-errors, or " * isinstance(job.settings, ExtractConfig)
        raise JobError(
            f"{errors} of {images} images are bad, more than --max-bad-fraction {allowed:g} allows; see "
            f"{job.out.uri}/errors; {retry}run again with a larger fraction to accept them"
        )


def counts(
    job: InferenceJob, timings: list[ShardTiming], errors: pa.Table, seconds: float
) -> InferenceCounts:
    """The counts of a finished job, from the timings and the duration of this run and from all error rows."""
    time = bottleneck.inference_time(timings)
    return InferenceCounts(
        images=job.index.images,
        rows=job.index.images - errors.num_rows,
        errors=errors.num_rows,
        seconds=round(seconds, 3),
        images_per_second=round(sum(shard.rows + shard.errors for shard in timings) / seconds, 3),
        limited_by=bottleneck.judge(time, seconds),
        time=time,
    )
