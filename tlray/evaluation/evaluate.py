"""The evaluate job: a model and labelled images, or their features, in; scores and the worst mistakes out."""

from __future__ import annotations

import hashlib
import heapq
import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.cluster import session
from tlray.core.config import EvaluateConfig
from tlray.core.errors import JobError, UserError
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.evaluation import predict
from tlray.evaluation.report import TILES, ClassScore, Evaluation, Mistake, write_report
from tlray.features import inference
from tlray.features.feature_set import FeatureSet, Rows
from tlray.images import decoder
from tlray.images.bad_image import BadImage
from tlray.images.index import Index, piece_name
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.models.model import NETWORK, Model, load

_THUMBNAIL = 160
"""Longest side, in pixels."""


def evaluate(
    model: str,
    data: str,
    config: EvaluateConfig,
    *,
    out: str | None = None,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
) -> Evaluation:
    """Score a model on labelled images, or on a feature set of its own provenance.

    Args:
        model: a model's folder or URI.
        data: images (see `tlray.images.listing.Images`), or a feature set, on which only the head runs.
        config: which split, and how to run.
        out: folder for the report; by default "report" in the model's folder.
        address: of a running Ray, for images; a local one is started without. Features need no Ray.
        progress: called after each shard.

    Returns:
        The evaluation, also written to `out` as JSON, plots and a page.

    Raises:
        UserError: no labels, labels that the model does not know, features of another provenance,
            or a split that is not there; nothing was written.
        JobError: the job failed.
    """
    started = time.monotonic()
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
        source = trained.images(data)
        counts = Counter((image.split, image.label) for image in source)
        split = _check(counts, config.split, data, trained)
        rows = _from_images(trained, source, folder.uri, split, report, config, address, progress)
        root = source.root
    tally = _Tally(trained.classes)
    for batch in rows:
        tally.add(batch)
    chosen = [(label, count) for (of, label), count in counts.items() if split in (None, of)]
    images = sum(count for label, count in chosen if label is not None)
    found = tally.evaluation(
        root,
        model=trained.folder.uri,
        data=folder.uri,
        split=split,
        images=images,
        errors=images - tally.rows,
        unlabelled=sum(count for label, count in chosen if label is None),
        stages=tuple(trained.manifest["stages"]),
        provenance={
            "head": trained.manifest["head"],
            **trained.provenance.to_json(),
            "training": trained.manifest["job"]["training"],
            "versions": trained.manifest["versions"],
        },
        started=started,
    )
    write_report(found, report)
    return found


class _Tally:
    """What is kept of the rows that were seen: a few numbers of each, and the worst mistakes."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.true: list[npt.NDArray[np.int64]] = []
        self.predicted: list[npt.NDArray[np.int64]] = []
        self.loss = 0.0
        self.rows = 0
        self.worst: list[tuple[float, str, int, int]] = []

    def add(self, batch: Rows) -> None:
        """Take in rows whose "features" are probabilities."""
        number: dict[str | None, int] = {label: index for index, label in enumerate(self.classes)}
        true = np.array([number[label] for label in batch.labels], np.int64)
        predicted = batch.features.argmax(axis=1)
        given = batch.features[np.arange(len(true)), true].astype(np.float64)
        # Clipped as scikit-learn's log_loss does: float32 knows no smaller distance from 1.
        self.loss -= float(np.log(np.clip(given, np.finfo(np.float32).eps, 1)).sum())
        self.true.append(true)
        self.predicted.append(predicted)
        self.rows += len(true)
        for row in np.flatnonzero(true != predicted):
            probability = float(batch.features[row, predicted[row]])
            heapq.heappush(self.worst, (probability, batch.paths[row], int(true[row]), int(predicted[row])))
            if len(self.worst) > TILES:
                heapq.heappop(self.worst)

    def evaluation(self, root: Folder | None, *, started: float, **facts: Any) -> Evaluation:
        """The scores of all rows; thumbnails come from `root`, if the images are there."""
        from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

        if not self.rows:
            raise JobError("no image of these could be decoded: there is nothing to evaluate")
        # In the order of the paths: what is near in an archive is read together.
        thumbnails = _thumbnails(root, sorted(path for _, path, _, _ in self.worst)) if root else {}
        true, predicted = np.concatenate(self.true), np.concatenate(self.predicted)
        numbers = list(range(len(self.classes)))
        scores = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=np.nan)
        return Evaluation(
            rows=self.rows,
            loss=self.loss / self.rows,
            accuracy=float(accuracy_score(true, predicted)),
            classes=tuple(self.classes),
            confusion_matrix=tuple(map(tuple, confusion_matrix(true, predicted, labels=numbers).tolist())),
            scores=tuple(
                ClassScore(label=label, precision=precision, recall=recall, f1=f1, support=support)
                for label, precision, recall, f1, support in zip(
                    self.classes, *(column.tolist() for column in scores), strict=True
                )
            ),
            mistakes=tuple(
                Mistake(
                    path=path,
                    label=self.classes[label],
                    predicted=self.classes[wrong],
                    probability=probability,
                    thumbnail=thumbnails.get(path),
                )
                for probability, path, label, wrong in sorted(self.worst, reverse=True)
            ),
            seconds=round(time.monotonic() - started, 3),
            **facts,
        )


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
    for rows in features.batches(split):
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
    job = f"{what} {config.precision} {model.manifest['created']}"
    key = hashlib.sha256(job.encode()).hexdigest()[:8]
    parts = report.child(f".parts-{key}")
    with session.connect(address) as connected:
        work = predict.start(model, source.root, chosen, what, parts, config)
        predict.run(work, model, progress, connected)
        inference.reconcile(work)
    yield from map(Rows.of, predict.tables(work))
    parts.remove()


def _images_of(features: FeatureSet) -> Folder | None:
    """The root of the images that features were extracted from, if it is still there."""
    try:
        return Images.open(features.manifest["job"]["images"]).root
    except (UserError, OSError):
        return None


def _thumbnails(root: Folder, paths: list[str]) -> dict[str, bytes]:
    """Small pictures of those that are still there."""
    found, read_image = {}, Reader(root)
    for path in paths:
        with suppress(BadImage):
            found[path] = _thumbnail(read_image(path))
    return found


def _thumbnail(data: bytes) -> bytes:
    image = decoder.open_image(data)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()
