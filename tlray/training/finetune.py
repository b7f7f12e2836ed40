"""The finetune job: trains a network from a layer on, on images or on their features at the cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tlray.cluster import session
from tlray.core.config import FinetuneConfig
from tlray.core.errors import UserError
from tlray.core.settings import configured, option
from tlray.core.storage import Folder, StrPath
from tlray.features import inference
from tlray.features.feature_set import FeatureSet
from tlray.images.account import Announce, Tally, warn
from tlray.images.augment import Augmentation, Views
from tlray.images.conventions import ColumnNames
from tlray.images.index import piece_name
from tlray.images.listing import Images
from tlray.models.assemble import trained_part
from tlray.training import checks, holdout, model_folder, train
from tlray.training.feature_cache import FeatureCache
from tlray.training.holdout import TrainingData
from tlray.training.model_folder import TrainResult
from tlray.training.starting_point import StartingPoint
from tlray.training.worker.task import Report


def finetune(
    images: StrPath,
    out: StrPath,
    config: FinetuneConfig | None = None,
    *,
    model: StrPath | None = None,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
    announce: Announce = warn,
    report: Report = lambda metrics: None,
    **settings: Any,
) -> TrainResult:
    """Train a network from a layer on, together with its head.

    The layers before it are frozen. Without augmentation their output is computed once, and every epoch reads
    it. With augmentation each epoch computes the output for new views of the images; with `views`, it is
    computed once for that many views of each image, and reused.

    Args:
        images: the images, as `tlray.images.listing.Images` takes them; or a feature set with the needed cut.
        out: the new model's folder or URI, which is new, empty, or from the same job; that job is continued.
        config: the settings of the training.
        model: the model to start from; None starts with a new head on the backbone that `config` names.
        address: the address of a running Ray; None starts a local Ray and stops it at the end.
        progress: called after each shard of images before the training, with the images done and to do.
        announce: called with what was understood of the images; by default, its warnings become Python's.
        report: called with the metrics of each epoch, as `tlray.training.fit.fit` does.
        settings: single fields of `config`, e.g. `from_="block5_conv1"`.

    Raises:
        UserError: the job cannot be done; nothing was written.
        JobError: the job failed; run it again to continue.
    """
    started = time.monotonic()
    config = configured(FinetuneConfig, config, settings)
    folder = Folder.open(out)
    if Folder.open(images).is_file(piece_name(0)):
        data = _from_features(images, folder, config, model)
    else:
        data = _from_images(images, folder, config, model, progress, announce)
    starting_point = data.starting_point
    job = {"data": data.identity, **starting_point.identity, "training": model_folder.identity(config)}
    if (result := model_folder.finished(folder, job)) is not None:
        return result
    # Build the model once now, so that a head that does not fit is refused before hours of work.
    trained = trained_part(starting_point.frozen, starting_point.end, starting_point.head, len(data.classes))
    feature_shape = trained.input_shape[1:]
    cpus = checks.cpus(config, config.streams)
    with model_folder.reserved(folder, job), session.connect(address, cpus=cpus) as connected:
        connected()
        from tlray.training import ray_workers

        first = starting_point.first_trained(config)
        ray_workers.check_resources(config.least_workers, config.streams)
        return train.run(
            config,
            starting_point,
            data.prepare(folder.child(model_folder.WORK), feature_shape),
            folder,
            job=job,
            classes=data.classes,
            facts=data.facts,
            stage={"command": "finetune", "from": first, "augment": config.augment, "views": config.views},
            started=started,
            report=report,
        )


@dataclass(frozen=True)
class _Data:
    """Images or features, and the network that fits them."""

    starting_point: StartingPoint
    classes: list[str]
    """The classes in the order of the model's output."""
    identity: Any
    """The JSON value that identifies these images or features."""
    facts: dict[str, Any]
    """The fields `images`, `split`, `split_seed` and `account` of the model's manifest."""
    prepare: Callable[[Folder, tuple[int, ...]], TrainingData]
    """Returns the rows, given a folder for work and the shape of one row of features; it needs Ray."""


def _from_features(uri: StrPath, out: Folder, config: FinetuneConfig, model: StrPath | None) -> _Data:
    features = FeatureSet.open(uri)
    features.check_outside(out)
    for name in ("augment", "split", "path_column", "label_column", "split_column"):
        if (value := getattr(config, name)) is not None:
            raise UserError(
                f"{option(name)} {value} needs images, but {features.folder.uri} is a feature set: "
                "give the images, or leave out the option"
            )
    starting_point = StartingPoint.decide(config, model, features)
    _check_same_split(starting_point, features.facts)
    labels = holdout.check_parts(config, features.folder.uri, features.counts())
    classes = _classes(config, starting_point, labels, features.folder.uri)
    rows = holdout.load(features, config)
    return _Data(starting_point, classes, features.identity, features.facts, lambda work, feature_shape: rows)


def _from_images(
    path: StrPath,
    out: Folder,
    config: FinetuneConfig,
    start: StrPath | None,
    progress: inference.Progress,
    announce: Announce,
) -> _Data:
    views = Views(Augmentation.parse(config.augment), config.seed) if config.augment is not None else None
    images, uri = Images.open(path, ColumnNames.of(config)), Folder.open(path).uri
    images.check_outside(out)
    starting_point = StartingPoint.decide(config, start, None)
    facts: dict[str, Any] = {"images": uri, "split": config.split, "split_seed": config.seed}
    if config.split is None and (model := starting_point.model) and model.manifest.images == uri:
        # Use the split of the model, so that images which it has not been trained on stay held out.
        facts = {name: getattr(model.manifest, name) for name in facts}
    images = images.assign(facts["split"], facts["split_seed"])
    tally, training = Tally(), set()
    for image in images:
        tally.add(image.split, image.label)
        if holdout.part(config, image.split, image.path) == "training":
            training.add(image.label)
    account = tally.account(images, complete=True)
    announce(account)
    _check_same_split(starting_point, facts)
    labels = holdout.check_parts(config, uri, tally.counts)
    holdout.check_held_out(config, uri, training, labels)
    classes = _classes(config, starting_point, labels, uri)
    facts["account"] = account
    cache = FeatureCache(images=images, uri=uri, config=config, starting_point=starting_point, views=views)
    return _Data(starting_point, classes, uri, facts, partial(cache.fill, progress=progress))


def _check_same_split(starting_point: StartingPoint, facts: dict[str, Any]) -> None:
    """Raise UserError if the model would be trained on images that were held out from it so far."""
    model = starting_point.model
    if model is None or model.manifest.images != facts["images"]:
        return
    splits = ((model.manifest.split, model.manifest.split_seed), (facts["split"], facts["split_seed"]))
    before, now = (
        "no --split" if split is None else f"--split {split} --seed {seed}" for split, seed in splits
    )
    if before != now:
        raise UserError(
            f"the model was trained on these images with {before}, not with {now}, so test images would "
            "become training images, or the reverse: use the same split"
        )


def _classes(
    config: FinetuneConfig, starting_point: StartingPoint, labels: list[str], where: str
) -> list[str]:
    """Check the settings, and return all classes in the order of the model's output."""
    if starting_point.classes is None:
        return checks.check(config, labels, where)
    checks.check(replace(config, classes=None), labels, where)
    if unknown := sorted(set(labels) - set(starting_point.classes)):
        raise UserError(
            f"{where} has classes that the model does not know ({', '.join(unknown[:5])}): "
            f"it knows {', '.join(starting_point.classes[:10])}; start with a new --head"
        )
    if checks.check(config, starting_point.classes, where) != starting_point.classes:
        raise UserError(
            f"--classes {config.classes}: the model's order is {','.join(starting_point.classes)}; leave out "
            "the option, or start with a new --head"
        )
    return starting_point.classes
