"""The evaluate job: scores a model on labelled images, or on their features."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tlray.core.checked_file import StorageError
from tlray.core.config import EvaluateConfig
from tlray.core.errors import JobError, UserError
from tlray.core.settings import configured
from tlray.core.storage import Folder, StrPath
from tlray.evaluation import model_inference
from tlray.evaluation.report import check_folder, write_report
from tlray.evaluation.scores import Evaluation, Tally
from tlray.features import inference, part_files
from tlray.features.feature_set import FeatureSet, Rows
from tlray.images import copies
from tlray.images.account import Counts
from tlray.images.bad_image import BadImage
from tlray.images.conventions import ColumnNames
from tlray.images.index import piece_name
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.images.sandbox import DecoderProcess
from tlray.models.model import Model


def evaluate(
    model: StrPath,
    data: StrPath,
    config: EvaluateConfig | None = None,
    *,
    out: StrPath | None = None,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
    **settings: Any,
) -> Evaluation:
    """Score a model on labelled images, or on a feature set with the model's provenance.

    Args:
        model: the folder or URI of the model.
        data: images, as `tlray.images.listing.Images` takes them, or a feature set; then only the head runs.
        config: the split to evaluate, and how to run the model.
        out: the folder for the report; None stands for "report" in the model's folder.
        address: the address of a running Ray; None starts and stops a local Ray, if `data` are images.
        progress: called after each shard with the images done and to do.
        settings: single fields of `config`, e.g. `split="test"`.

    Returns:
        The evaluation, which is also written to `out` as JSON, plots and a web page.

    Raises:
        UserError: there are no labels, the model does not know a label, the split does not exist, or the
            features have another provenance; nothing was written.
        JobError: the job failed.
    """
    started = time.monotonic()
    config = configured(EvaluateConfig, config, settings)
    trained, folder = Model.open(model), Folder.open(data)
    report = Folder.open(out) if out else trained.folder.child("report")
    features = FeatureSet.open(data) if folder.is_file(piece_name(0)) else None
    if features is None:
        source = model_inference.images_of(trained, data, config)
        counts: Counts = Counter((image.split, image.label) for image in source)
    else:
        if ColumnNames.of(config) != ColumnNames():
            raise UserError(
                f"{data} is a feature set: leave out --path-column, --label-column, --split-column"
            )
        counts = features.counts()
    split = _check(counts, config.split, folder.uri, trained)
    (source if features is None else features).check_outside(report)
    images = f"{folder.uri} ({split})"
    # Each (images, split, precision, model) has its own folder, so an interrupted job never blocks another.
    key = f"{images} {config.precision} {trained.manifest.created}"
    parts = report.child(f".parts-{hashlib.sha256(key.encode()).hexdigest()[:8]}")
    with report.locked():
        check_folder(report)
        if features is None:
            chosen = (image for image in source if image.label is not None and split in (None, image.split))
            job, _, _ = model_inference.run(
                trained, source.root, chosen, images, parts, config, progress, address
            )
            if job.index.images != sum(count for label, count in _chosen(counts, split) if label is not None):
                raise JobError(f"images of {folder.uri} were added or removed just now: run it again")
            batches: Iterator[Rows] = map(Rows.of, part_files.read_parts(job.index))
            root: Folder | None = source.root
        else:
            batches, root = _from_features(trained, features, split), _root_of_images(features)
        evaluation = _evaluation(trained, folder.uri, batches, counts, split, root, started, config)
        write_report(evaluation, report)
        inference.remove(parts)  # Until the report is written, the same command continues from them.
    return evaluation


def _evaluation(
    model: Model,
    data: str,
    batches: Iterator[Rows],
    counts: Counts,
    split: str | None,
    root: Folder | None,
    started: float,
    config: EvaluateConfig,
) -> Evaluation:
    """Count all rows; `root` is the folder of their files."""
    tally = Tally(model.classes)
    for batch in batches:
        tally.add(batch)
    chosen = _chosen(counts, split)
    images = sum(count for label, count in chosen if label is not None)
    # Read in the order of the paths, because images that are close in an archive are read together.
    thumbnails = _thumbnails(root, sorted(path for _, path, _, _ in tally.worst), config) if root else {}
    return tally.evaluation(
        thumbnails,
        model=model.folder.uri,
        data=data,
        split=split,
        images=images,
        errors=images - tally.rows,
        unlabelled=sum(count for label, count in chosen if label is None),
        stages=tuple(model.manifest.stages),
        provenance={
            "head": model.manifest.head,
            **model.provenance.to_json(),
            "training": model.manifest.job["training"],
            "versions": model.manifest.versions,
        },
        started=started,
    )


def _chosen(counts: Counts, split: str | None) -> list[tuple[str | None, int]]:
    """Return the labels and the numbers of images of one split, or of all."""
    return [(label, count) for (name, label), count in counts.items() if split in (None, name)]


def _check(counts: Counts, asked: str | None, data: str, model: Model) -> str | None:
    """Check the labels, and return the split to evaluate; None stands for all images."""
    splits = sorted({split for split, _ in counts if split is not None})
    if asked is not None:
        model_inference.check_split(asked, splits, data)
    split = asked or next((name for name in ("test", "validation") if name in splits), None)
    if split is None and splits:
        raise UserError(
            f"{data} has neither test nor validation images; give --split {splits[0]} to evaluate images "
            "that the model may have been trained on"
        )
    labels = {label for label, _ in _chosen(counts, split) if label is not None}
    if not labels:
        raise UserError(
            f"{data} has no labels to compare with: expected one folder for each class, or a label column"
        )
    if unknown := sorted(labels - set(model.classes)):
        raise UserError(
            f"{data} has classes that the model does not know ({', '.join(unknown[:5])}): "
            f"it knows {', '.join(model.classes[:10])}"
        )
    return split


def _from_features(model: Model, features: FeatureSet, split: str | None) -> Iterator[Rows]:
    """Yield rows whose "features" are probabilities, computed by the head in this process."""
    if differences := features.provenance.differences(model.provenance):
        raise UserError(
            f"{features.folder.uri} has another provenance than the model ({'; '.join(differences)}): "
            "evaluate on the images, or extract features as for the model"
        )
    head = model.load().get_layer("head")
    for rows in features.batches(split, labelled=True):
        probabilities = np.asarray(head(rows.features.astype(np.float32), training=False))
        model.check_output(probabilities, rows.paths[0])
        yield replace(rows, features=probabilities)


def _root_of_images(features: FeatureSet) -> Folder | None:
    """Return the root of the images that features were extracted from; None if it no longer exists."""
    try:
        return Images.open(features.manifest.job.images, ColumnNames.of(features.manifest.job)).root
    except (UserError, OSError):
        return None


def _thumbnails(root: Folder, paths: list[str], config: EvaluateConfig) -> dict[str, bytes]:
    """Return thumbnails, as JPEG, of the images that can still be read."""
    thumbnails, read_image = {}, Reader(root)
    shrink = partial(copies.thumbnail, side=160)
    with DecoderProcess(config.seconds_per_image) as run:
        for path in paths:
            with suppress(BadImage, StorageError):
                thumbnails[path] = run(shrink, read_image(path))
    return thumbnails
