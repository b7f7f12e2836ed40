"""The finetune job: images, or features at the cut, in; a model trained from a layer on out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tlray.cluster import session
from tlray.core.config import FinetuneConfig
from tlray.core.errors import UserError
from tlray.core.settings import configured, option
from tlray.core.storage import Folder, StrPath
from tlray.features import inference, part_files
from tlray.features.feature_set import FeatureSet
from tlray.images.augment import Augmentation, Views
from tlray.images.index import piece_name
from tlray.images.listing import Images
from tlray.models.assemble import trained_part
from tlray.training import checks, holdout, model_folder, train
from tlray.training.feature_cache import FeatureCache, Prepared
from tlray.training.model_folder import TrainResult
from tlray.training.starting_point import StartingPoint
from tlray.training.worker.task import Task, targets


def finetune(
    images: StrPath,
    out: StrPath,
    config: FinetuneConfig | None = None,
    *,
    model: StrPath | None = None,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
    report: train.Report = lambda metrics: None,
    **settings: Any,
) -> TrainResult:
    """Train a network from a layer on, together with its head.

    The layers before it are frozen. Without augmentation their output is computed once, and every epoch reads
    it. With augmentation each epoch streams new views through them, or, with `views`, so many views of each
    image are computed once.

    Args:
        images: see `tlray.images.listing.Images`; or a feature set with the cut that is needed.
        out: the new model's folder or URI; new, empty, or of the same job, which then goes on.
        config: what to train, and how.
        model: the model to start from; without one a new head on the backbone that `config` names.
        address: of a running Ray; without it a local one is started and stopped.
        progress: called after each shard of images before the training, with the images done and to do.
        report: called with the metrics of each epoch, as by `tlray.training.fit.fit`.
        settings: single fields of `config`, e.g. `from_="block5_conv1"`.

    Raises:
        UserError: the job cannot be done; nothing was written.
        JobError: the job failed; run it again to go on.
    """
    started = time.monotonic()
    config = configured(FinetuneConfig, config, settings)
    folder = Folder.open(out)
    decide = _from_features if Folder.open(images).is_file(piece_name(0)) else _from_images
    source = decide(images, folder, config, model, progress)
    origin = source.origin
    job = {"data": source.identity, **origin.identity, "training": model_folder.identity(config)}
    if (result := model_folder.finished(folder, job)) is not None:
        return result
    # Built once here, so that a head that does not fit is refused before hours of work.
    trained_part(origin.frozen, origin.end, origin.head, len(source.classes))
    cpus = checks.cpus(config, config.streams)
    with model_folder.reserved(folder, job), session.connect(address, cpus=cpus) as connected:
        connected()
        from tlray.training import ray_workers

        ray_workers.check(config.least_workers, config.streams)
        rows = source.rows(folder.child(model_folder.WORK))
        about = train.About(
            job=job,
            classes=source.classes,
            **source.facts,
            stage={
                "command": "finetune",
                "from": origin.first_trained(config),
                "augment": config.augment,
                "views": config.views,
            },
            earlier_stages=origin.stages,
        )
        return train.run(
            _task(config, source, rows),
            folder,
            about,
            errors=rows.errors,
            started=started,
            report=report,
            passes=rows.passes,
        )


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Images or features, and the network that fits them."""

    origin: StartingPoint
    classes: list[str]
    identity: Any
    """JSON value that says which data these are."""
    facts: dict[str, Any]
    """For the manifest: which images, and how they are split."""
    rows: Callable[[Folder], Prepared]
    """Called once Ray is connected, with a folder for work in progress."""


def _task(config: FinetuneConfig, data: _Data, rows: Prepared) -> Task:
    validation = rows.validation
    return Task(
        config=config,
        learning_rate=data.origin.learning_rate(config),
        head=data.origin.head,
        classes=len(data.classes),
        frozen=data.origin.frozen,
        end=data.origin.end,
        start=data.origin.start,
        features=None if rows.source else rows.training.features,
        targets=targets(rows.training, data.classes),
        validation=(validation.features, targets(validation, data.classes)) if validation.paths else None,
        source=rows.source,
        views=config.views is not None,
    )


def _from_features(
    data: StrPath, out: Folder, config: FinetuneConfig, model: StrPath | None, progress: inference.Progress
) -> _Data:
    features = FeatureSet.open(data)
    for name in ("augment", "split"):
        if (value := getattr(config, name)) is not None:
            raise UserError(
                f"{option(name)} {value}: {features.folder.uri} is a feature set; that needs the images: "
                "give those, or leave the option away"
            )
    origin = StartingPoint.decide(config, model, features)
    _check_same_split(origin, features.facts)
    classes = _classes(config, origin, features.classes, features.folder.uri)
    rows, validation = holdout.load(features, config)
    prepared = Prepared(
        training=rows, validation=validation, source=None, errors=part_files.ERRORS.empty_table()
    )
    return _Data(
        origin=origin,
        classes=classes,
        identity=features.identity,
        facts=features.facts,
        rows=lambda work: prepared,
    )


def _from_images(
    data: StrPath, out: Folder, config: FinetuneConfig, model: StrPath | None, progress: inference.Progress
) -> _Data:
    views = Views(Augmentation.parse(config.augment), config.seed) if config.augment is not None else None
    images, uri = Images.open(data), Folder.open(data).uri
    images.check_outside(out)
    origin = StartingPoint.decide(config, model, None)
    facts: dict[str, Any] = {"images": uri, "split": config.split, "split_seed": config.seed}
    if config.split is None and origin.model is not None and origin.model.manifest.images == uri:
        # Images that the model has not been trained on stay held out.
        facts = {name: getattr(origin.model.manifest, name) for name in facts}
    images = images.assign(facts["split"], facts["split_seed"])
    splits: Counter[str | None] = Counter()
    labels: set[str] = set()
    for image in images:
        if image.label is not None:
            splits[image.split] += 1
            if holdout.part(config, image.split, image.path) == "training":
                labels.add(image.label)
    _check_same_split(origin, facts)
    if splits:
        holdout.check_parts(config, uri, splits)
    classes = _classes(config, origin, sorted(labels), uri)
    preparation = FeatureCache(images=images, uri=uri, config=config, origin=origin, views=views)
    return _Data(
        origin=origin,
        classes=classes,
        identity=uri,
        facts=facts,
        rows=lambda work: preparation.run(work, progress),
    )


def _check_same_split(origin: StartingPoint, facts: dict[str, Any]) -> None:
    """Raise UserError if a model would be trained on images that it has held out so far."""
    if origin.model is None or origin.model.manifest.images != facts["images"]:
        return

    def rule(made: Mapping[str, Any]) -> str:
        return (
            "no --split" if made["split"] is None else f"--split {made['split']} --seed {made['split_seed']}"
        )

    before, now = rule(vars(origin.model.manifest)), rule(facts)
    if before != now:
        raise UserError(
            f"the model was trained on these images with {before}, not with {now}: what it has learnt from "
            "would be tested on, or the other way round; use the same split"
        )


def _classes(config: FinetuneConfig, origin: StartingPoint, labels: list[str], where: str) -> list[str]:
    """All classes, in the order of the model's output."""
    if origin.classes is None:
        return checks.check(config, labels, where)
    checks.check(replace(config, classes=None), labels, where)
    if strangers := sorted(set(labels) - set(origin.classes)):
        raise UserError(
            f"{where} has classes that the model does not know ({', '.join(strangers[:5])}): "
            f"it knows {', '.join(origin.classes[:10])}; start with a new --head"
        )
    if checks.check(config, origin.classes, where) != origin.classes:
        raise UserError(
            f"--classes {config.classes}: the model's order is {','.join(origin.classes)}; leave the option "
            "away, or start with a new --head"
        )
    return origin.classes
