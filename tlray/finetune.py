"""The finetune job: images, or features at the cut, in; a model trained from a layer on out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tlray import cluster, featureset, holdout, pipeline, training
from tlray.augment import Augmentation, Views
from tlray.config import FinetuneConfig, option
from tlray.errors import UserError
from tlray.featureset import FeatureSet
from tlray.fit import facts_of, load
from tlray.index import NAME as INDEX
from tlray.listing import Images
from tlray.origin import Origin
from tlray.preparation import Preparation, Prepared
from tlray.storage import Folder


def finetune(
    data: str,
    out: str,
    config: FinetuneConfig,
    *,
    model: str | None = None,
    address: str | None = None,
    progress: pipeline.Progress = lambda done, total: None,
    report: training.Report = lambda metrics: None,
) -> dict[str, Any]:
    """Train a network from a layer on, together with its head.

    What lies before that layer is frozen. Without augmentation its output is computed once, and every
    epoch reads it. With augmentation each epoch streams new views through it, or, with `views`, so
    many of each image are computed once.

    Args:
        data: images (see `tlray.listing.Images`), or a feature set with the cut that is needed.
        out: the new model's folder or URI; new, empty, or of the same job, with which it goes on.
        config: what to train, and how.
        model: the model to start from; without one a new head on the backbone that `config` names.
        address: of a running Ray; without it a local one is started and stopped.
        progress: called after each shard of images that is gone through before the training.
        report: called with the metrics of each epoch, as by `tlray.fit.fit`.

    Returns:
        JSON values, as of `tlray.fit.fit`, with `errors`, the number of images that cannot be decoded.

    Raises:
        UserError: the job cannot be; nothing was written.
        JobError: the job failed; run it again to go on.
    """
    started = time.monotonic()
    given = Folder.open(data)
    folder = Folder.open(out)
    prepare = _from_features if given.is_file(INDEX) else _from_images
    found = prepare(data, config, model, progress)
    origin = found.origin
    classes = _classes(config, origin, found.labels, given.uri)
    job = {"data": found.identity, **origin.identity, "training": asdict(config)}
    if (result := training.finished(folder, job)) is not None:
        return result
    was_there = folder.exists()
    begun = training.begin(folder, job)
    streams = config.augment is not None and config.views is None
    try:
        with cluster.connect(address, cpus=max(2, training.cpus(config, streams))):
            from tlray import trainer

            trainer.check(config.workers, streams)
            ready = found.rows(folder.child(training.WORK))
            if ready.errors.num_rows:
                featureset.write_errors(folder, 0, ready.errors, {"job": job})
            return training.run(
                training.Training(
                    config=config,
                    learning_rate=origin.learning_rate(config),
                    head=origin.head,
                    classes=classes,
                    frozen=origin.frozen,
                    end=origin.end,
                    start=origin.start,
                    training=ready.training,
                    validation=ready.validation,
                    source=ready.source,
                    views=config.views is not None,
                ),
                folder,
                job,
                facts={**found.facts, "errors": ready.errors.num_rows},
                stage={
                    "command": "finetune",
                    "from": config.from_,
                    "augment": config.augment,
                    "views": config.views,
                },
                before=origin.stages,
                started=started,
                report=report,
            )
    except UserError:
        if not begun:
            training.abandon(folder, was_there)
        raise


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Images or features, and the network that fits them."""

    origin: Origin
    labels: list[str]
    """Of all rows, sorted."""
    identity: Any
    """JSON value that says which data these are."""
    facts: dict[str, Any]
    """For the manifest."""
    rows: Callable[[Folder], Prepared]
    """Called once Ray is connected, with a folder for work in progress."""


def _from_features(
    data: str, config: FinetuneConfig, model: str | None, progress: pipeline.Progress
) -> _Data:
    features = FeatureSet.open(data)
    for name in ("augment", "split"):
        if (value := getattr(config, name)) is not None:
            raise UserError(
                f"{option(name)} {value}: {features.folder.uri} is a feature set; that needs the images: "
                "give those, or leave the option away"
            )
    origin = Origin.decide(config, model).on(features)
    training_rows, validation = load(features, config)
    prepared = Prepared(
        training=training_rows,
        validation=validation,
        source=None,
        errors=featureset.ERRORS.empty_table(),
    )
    return _Data(
        origin=origin,
        labels=features.classes,
        identity=features.manifest["job"],
        facts=facts_of(features),
        rows=lambda work: prepared,
    )


def _from_images(data: str, config: FinetuneConfig, model: str | None, progress: pipeline.Progress) -> _Data:
    views = Views(Augmentation.parse(config.augment), config.seed) if config.augment is not None else None
    images = Images.open(data).assign(config.split, config.seed)
    uri = Folder.open(data).uri
    origin = Origin.decide(config, model)
    splits: Counter[str | None] = Counter()
    labels: set[str] = set()
    for image in images:
        if image.label is not None:
            splits[image.split] += 1
            labels.add(image.label)
    preparation = Preparation(images=images, uri=uri, config=config, origin=origin, views=views)
    if labels:
        holdout.check_parts(config, uri, splits)
    return _Data(
        origin=origin,
        labels=sorted(labels),
        identity=uri,
        facts={"images": uri, "split": config.split, "split_seed": config.seed},
        rows=lambda work: preparation.run(work, progress),
    )


def _classes(config: FinetuneConfig, origin: Origin, labels: list[str], where: str) -> list[str]:
    """All classes, in the order of the model's output."""
    classes = training.check(config, labels, where) if origin.classes is None else origin.classes
    if strangers := sorted(set(labels) - set(classes)):
        raise UserError(
            f"{where} has classes that the model does not know ({', '.join(strangers[:5])}): "
            f"it knows {', '.join(classes[:10])}; start with a new --head"
        )
    if training.check(config, classes, where) != classes:
        raise UserError(
            f"--classes {config.classes}: the model's order is {','.join(classes)}; leave the option "
            "away, or start with a new --head"
        )
    return classes
