"""A model over images: what predict and evaluate share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.csv

from tlray.cluster import session
from tlray.core.config import RunConfig
from tlray.core.manifest import package_versions, versions
from tlray.core.storage import Folder, StrPath
from tlray.features import inference, inference_tasks, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed
from tlray.models.compiled import fastest_precision
from tlray.models.model import NETWORK, Model, loader


def run(
    model: Model,
    root: Folder,
    images: Iterable[Listed],
    source: str,
    work: Folder,
    config: RunConfig,
    progress: inference.Progress,
    connected: session.Connected,
) -> tuple[inference_tasks.InferenceJob, list[ShardTiming]]:
    """Do a pass of a model over images, or what is left of it; its "features" are probabilities.

    Args:
        model: the model.
        root: of the images.
        images: listed for a new job.
        source: what the images are of, to know the job again.
        work: the folder for the part files.
        config: how to run.
        progress: called after each shard.
        connected: waits until Ray is there.

    Returns:
        The pass, and what became of the shards, as of `inference.run`.

    Raises:
        UserError: the folder holds something else, there are no images, or Ray cannot do the job.
        JobError: as of `inference.run`.
    """
    precision: str = config.precision
    if precision == "auto":
        precision = "float32" if model.provenance.precision == "float32" else fastest_precision()
    job = {
        "model": model.folder.uri,
        "model_created": model.manifest.created,
        "images": source,
        "precision": precision,
        "max_pixels": config.max_pixels,
    }
    writer = IndexWriter.start(work, images, config.batch_size, job)
    inference_job = inference_tasks.InferenceJob(
        root=root,
        index=writer.index,
        out=work,
        settings=config,
        image_size=model.provenance.image_size,
        batch_size=config.batch_size,
        store="float32",
        metadata={"job": job, "classes": model.classes, "versions": versions()},
        packages=package_versions(),
    )
    done = inference.run(
        inference_job,
        writer,
        lambda: loader(model.folder.read(NETWORK), inference_job.image_size, precision),
        progress,
        connected,
    )
    return inference_job, done


def tables(work: inference_tasks.InferenceJob) -> Iterator[pa.Table]:
    """All rows of a finished pass, a bounded number at a time."""
    return part_files.read_parts(work.out, len(work.index.shard_sizes), work.metadata["job"])


def images_of(model: Model, uri: StrPath) -> Images:
    """The images there, split as for training if they are those that the model was trained on.

    Raises:
        UserError: as of `Images.open`.
    """
    images = Images.open(uri)
    if Folder.open(uri).uri != model.manifest.images:
        return images
    return images.assign(model.manifest.split, model.manifest.split_seed or 0)
