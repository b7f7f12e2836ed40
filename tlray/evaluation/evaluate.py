"""The evaluate job: a model and labelled images, or their features, in; scores and the worst mistakes out."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tlray.cluster import session
from tlray.core.config import EvaluateConfig
from tlray.core.errors import UserError
from tlray.core.runtime import prepare_keras
from tlray.core.settings import configured
from tlray.core.storage import Folder, StrPath
from tlray.evaluation import model_inference
from tlray.evaluation.report import write_report
from tlray.evaluation.scores import Evaluation, Tally
from tlray.features import inference
from tlray.features.feature_set import FeatureSet, Rows
from tlray.images import copies
from tlray.images.bad_image import BadImage
from tlray.images.index import Index, piece_name
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.images.sandbox import DecoderProcess
from tlray.models.model import NETWORK, Model, load

_THUMBNAIL = 160
"""Longest side, in pixels."""


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
    """Score a model on labelled images, or on a feature set of its own provenance.

    Args:
        model: a model's folder or URI.
        data: images (see `tlray.images.listing.Images`), or a feature set, on which only the head runs.
        config: which split, and how to run.
        out: folder for the report; by default "report" in the model's folder.
        address: of a running Ray, for images; a local one is started without. Features need no Ray.
        progress: called after each shard with the images done and to do.
        settings: single fields of `config`, e.g. `split="test"`.

    Returns:
        The evaluation, also written to `out` as JSON, plots and a page.

    Raises:
        UserError: no labels, labels that the model does not know, features of another provenance,
            or a split that is not there; nothing was written.
        JobError: the job failed.
    """
    started = time.monotonic()
    config = configured(EvaluateConfig, config, settings)
    data = os.fspath(data)
    trained = Model.open(model)
    report = Folder.open(out) if out else trained.folder.child("report")
    folder = Folder.open(data)
    if folder.is_file(piece_name(0)):
        features = FeatureSet.open(data)
        counts = Index.open(features.folder).count("split", "label")
        split = _check(counts, config.split, data, trained)
        rows = _from_features(trained, features, split)
        root = _images_of(features)
    else:
        source = model_inference.images_of(trained, data)
        counts = Counter((image.split, image.label) for image in source)
        split = _check(counts, config.split, data, trained)
        rows = _from_images(trained, source, folder.uri, split, report, config, address, progress)
        root = source.root
    tally = Tally(trained.classes)
    for batch in rows:
        tally.add(batch)
    chosen = [(label, count) for (of, label), count in counts.items() if split in (None, of)]
    images = sum(count for label, count in chosen if label is not None)
    # In the order of the paths: what is near in an archive is read together.
    thumbnails = _thumbnails(root, sorted(path for _, path, _, _ in tally.worst)) if root else {}
    found = tally.evaluation(
        thumbnails,
        model=trained.folder.uri,
        data=folder.uri,
        split=split,
        images=images,
        errors=images - tally.rows,
        unlabelled=sum(count for label, count in chosen if label is None),
        stages=tuple(trained.manifest.stages),
        provenance={
            "head": trained.manifest.head,
            **trained.provenance.to_json(),
            "training": trained.manifest.job["training"],
            "versions": trained.manifest.versions,
        },
        started=started,
    )
    write_report(found, report)
    return found


def _check(counts: Counter[tuple[str | None, ...]], asked: str | None, data: str, model: Model) -> str | None:
    """The split to evaluate; None is everything."""
    splits = sorted({split for split, _ in counts if split is not None})
    if asked is not None and asked not in splits:
        raise UserError(f"{data} has no split {asked!r}: it has {', '.join(splits) or 'no splits'}")
    split = asked or next((name for name in ("test", "validation") if name in splits), None)
    if split is None and splits:
        raise UserError(
            f"{data} has only {splits[0]} images: to evaluate on these all the same give --split {splits[0]}"
        )
    labels = {label for of, label in counts if split in (None, of) and label is not None}
    if not labels:
        raise UserError(
            f"{data} has no labels to compare with: expected one folder for each class, or a label column"
        )
    if strangers := sorted(labels - set(model.classes)):
        raise UserError(
            f"{data} has classes that the model does not know ({', '.join(strangers[:5])}): "
            f"it knows {', '.join(model.classes[:10])}"
        )
    return split


def _from_features(model: Model, features: FeatureSet, split: str | None) -> Iterator[Rows]:
    """Probabilities from the head alone, in this process."""
    if differences := features.provenance.differences(model.provenance):
        raise UserError(
            f"{features.folder.uri} is of another provenance than the model ({'; '.join(differences)}): "
            "evaluate on the images, or extract as for the model"
        )
    prepare_keras()
    head = load(model.folder.read(NETWORK)).get_layer("head")
    for rows in features.batches(split, labelled=True):
        yield replace(rows, features=np.asarray(head(rows.features.astype(np.float32), training=False)))


def _from_images(
    model: Model,
    source: Images,
    uri: str,
    split: str | None,
    report: Folder,
    config: EvaluateConfig,
    address: str | None,
    progress: inference.Progress,
) -> Iterator[Rows]:
    """Probabilities from the whole network, by a pass over the labelled images."""
    chosen = (image for image in source if image.label is not None and split in (None, image.split))
    what = f"{uri} ({split})"
    # A name of its own, so that a job that was stopped stands in the way of no other.
    job = f"{what} {config.precision} {model.manifest.created}"
    key = hashlib.sha256(job.encode()).hexdigest()[:8]
    parts = report.child(f".parts-{key}")
    with session.connect(address) as connected:
        work, _ = model_inference.run(model, source.root, chosen, what, parts, config, progress, connected)
        inference.reconcile(work)
    yield from map(Rows.of, model_inference.tables(work))
    parts.remove()


def _images_of(features: FeatureSet) -> Folder | None:
    """The root of the images that features were extracted from, if it is still there."""
    try:
        return Images.open(features.manifest.job.images).root
    except (UserError, OSError):
        return None


def _thumbnails(root: Folder, paths: list[str]) -> dict[str, bytes]:
    """Small pictures of those that are still there."""
    thumbnails, read_image = {}, Reader(root)
    shrink = partial(copies.thumbnail, side=_THUMBNAIL)
    with DecoderProcess() as run:
        for path in paths:
            with suppress(BadImage):
                thumbnails[path] = run(shrink, read_image(path))
    return thumbnails
