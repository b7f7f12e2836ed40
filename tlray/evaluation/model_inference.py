"""Runs a model over images, for `predict` and `evaluate`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import astuple

import pyarrow as pa

from tlray.cluster import session
from tlray.core.config import RunConfig
from tlray.core.errors import UserError
from tlray.core.manifest import package_versions, versions
from tlray.core.storage import Folder, StrPath
from tlray.features import inference
from tlray.features.bottleneck import ShardTiming
from tlray.features.inference_tasks import InferenceJob
from tlray.images.conventions import ColumnNames
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed
from tlray.models.compiled import fastest_precision
from tlray.models.model import Model, loader


def run(
    model: Model,
    root: Folder,
    images: Iterable[Listed],
    source: str,
    work: Folder,
    config: RunConfig,
    progress: inference.Progress,
    address: str | None,
) -> tuple[InferenceJob, list[ShardTiming], pa.Table]:
    """Compute the probabilities of images below `root`, or those that an earlier run left out.

    They are the "features" in the part files of the folder `work`. `source` identifies the images, so that a
    later run recognises the job. The result is the job, the timings of this run's shards and all error rows.
    """
    with session.connect(address) as connected:
        precision: str = config.precision
        if precision == "auto":
            precision = "float32" if model.provenance.precision == "float32" else fastest_precision()
        identity = {
            **model.identity,
            "images": source,
            "precision": precision,
            "max_pixels": config.max_pixels,
            "columns": list(astuple(ColumnNames.of(config))),
        }
        writer = IndexWriter.start(work, images, config.batch_size, identity, work=work)
        job = InferenceJob(
            root=root,
            index=writer.index,
            out=work,
            settings=config,
            image_size=model.provenance.image_size,
            batch_size=config.batch_size,
            store="float32",
            metadata={"job": identity, "classes": model.classes, "versions": versions()},
            packages=package_versions(),
        )
        timings = inference.run(
            job,
            writer,
            lambda: loader(model.read(), job.image_size, precision),
            progress,
            connected,
        )
        return job, timings, inference.reconcile(job)


def images_of(model: Model, uri: StrPath, config: RunConfig) -> Images:
    """Open images. If the model was trained on them, they have the same splits as then."""
    images = Images.open(uri, ColumnNames.of(config))
    if Folder.open(uri).uri != model.manifest.images:
        return images
    return images.assign(model.manifest.split, model.manifest.split_seed or 0)


def check_split(split: str, splits: Collection[str | None], images: str) -> None:
    """Raise UserError if the images do not have the split that `--split` names."""
    if split not in splits:
        names = ", ".join(sorted(filter(None, splits))) or "no splits"
        raise UserError(f"--split {split}: {images} has no such split: it has {names}")
