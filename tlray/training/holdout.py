"""Which rows train, which are held out for validation, and whether they fit the settings and the memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from tlray.core.config import TrainConfig
from tlray.core.errors import UserError
from tlray.features.bottleneck import ShardTiming
from tlray.features.feature_set import FeatureSet, Rows
from tlray.features.part_files import ERRORS
from tlray.images import account
from tlray.images.account import Counts, Tally
from tlray.images.listing import assign_split
from tlray.training.view_stream import ViewSource


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The rows of a training, and how they were made."""

    training: Rows
    """The training rows. With a `source`, their features are placeholders."""
    validation: Rows
    """The validation rows; there may be none."""
    source: ViewSource | None = None
    """The source of new views of the training images in each epoch; None if the features are in memory."""
    has_views: bool = False
    """Whether each training row holds the features of several views."""
    errors: pa.Table = field(default_factory=ERRORS.empty_table)
    """The images that could not be decoded, with the columns of `part_files.ERRORS`."""
    passes: Sequence[ShardTiming] = ()
    """The timings of the shards of images that this run processed."""


def part(config: TrainConfig, split: str | None, path: str) -> str | None:
    """Return what an image is used for: "training", "validation", or None if it is not used."""
    fraction = config.validation_fraction
    if fraction is None and split == (config.validation or "validation"):
        return "validation"
    if split not in (None, "train"):
        return None
    # Use another hash than `--split` does: its training rows all have low hashes, so the same hash would hold
    # out none of them.
    if fraction is not None and assign_split(f"validation:{path}", 1 - fraction, config.seed) == "test":
        return "validation"
    return "training"


def load(features: FeatureSet, config: TrainConfig) -> TrainingData:
    """Read the rows of a feature set; raise UserError if they do not fit the settings or the memory."""
    where = features.folder.uri
    check_memory((features.manifest.rows, *features.shape), features.provenance.store, where)
    parts: dict[str, list[Rows]] = {"training": [], "validation": []}
    for rows in features.batches(labelled=True):
        uses = np.array(
            [part(config, split, path) or "" for split, path in zip(rows.splits, rows.paths, strict=True)]
        )
        for use, batches in parts.items():
            batches.append(rows.where(uses == use))
    training, validation = (Rows.join(batches, (0, *features.shape)) for batches in parts.values())
    check_rows(config, where, training, validation)
    return TrainingData(training=training, validation=validation)


def check_memory(shape: Sequence[int], store: str, where: str) -> None:
    """Raise UserError if features do not fit into memory twice, as read and in Ray's object store."""
    import psutil

    needed = 2 * math.prod(shape) * np.dtype(store).itemsize
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"training on {where} needs {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are "
            "free: store features with --store float16, cut the network later, or use fewer --views"
        )


def check_parts(config: TrainConfig, where: str, counts: Counts) -> list[str]:
    """Return the classes of the training images; raise UserError if the images do not fit the settings."""
    tally, splits = Tally(), Counter[str | None]()
    for (split, label), images in counts.items():
        tally.add(split, label, images)
        splits[split] += images if label is not None else 0
    if not splits.total():
        return []  # `checks.check` says so.
    names = sorted(name for name, images in splits.items() if name is not None and images)
    account.check_labels(counts, "train")
    if not splits["train"] and not splits[None]:
        raise UserError(
            f"{where} has no training rows: it has the splits {', '.join(names)}; expected `train`, or none"
        )
    option, validation = f"--validation {config.validation}", config.validation or "validation"
    if config.validation_fraction is None:
        if validation == "train":
            raise UserError(
                f"{option}: the model would be validated on the rows it is trained on; "
                "give another split, or a fraction such as 0.2"
            )
        account.check_labels(counts, validation)
        account.check_classes(counts, validation)
        if config.validation and validation not in names:
            raise UserError(
                f"{option}: {where} has no such split: it has {', '.join(names) or 'no splits'}; "
                "give one of those, or a fraction such as 0.2"
            )
    elif "validation" in names:
        raise UserError(f"{option}: {where} already has validation rows; leave out the option")
    has_validation = config.validation is not None or "validation" in names
    _check_counts(config, where, splits["train"] + splits[None], has_validation)
    return account.training_classes(counts)


def check_rows(config: TrainConfig, where: str, training: Rows, validation: Rows) -> None:
    """Raise UserError if these rows, without those of bad images, cannot be trained on."""
    if config.validation_fraction is not None and not validation.paths:
        raise UserError(
            f"--validation {config.validation} holds out no row of {where}: give a larger fraction"
        )
    check_held_out(config, where, training.labels, validation.labels)
    if len(set(training.labels)) < 2:
        raise UserError(
            f"the {len(training.labels)} training rows of {where} are all of one class, but a head needs at "
            "least two classes: add images of another class"
        )
    _check_counts(config, where, len(training.paths), bool(validation.paths))


def check_held_out(
    config: TrainConfig, where: str, training: Iterable[str | None], labels: Iterable[str | None]
) -> None:
    """Raise UserError if a fraction for validation leaves no training images of one of these labels."""
    if config.validation_fraction is not None and (lost := sorted(map(repr, {*labels} - {*training}))):
        raise UserError(
            f"--validation {config.validation} leaves no training image of {', '.join(lost[:3])} in {where}; "
            "give a smaller fraction or another --seed, or add images of each class"
        )


def _check_counts(config: TrainConfig, where: str, rows: int, has_validation: bool) -> None:
    if rows < config.workers:
        raise UserError(
            f"--workers {config.workers}: {where} has only {rows} training rows; "
            "expected at least one for each worker"
        )
    is_used = config.keeps_best or config.early_stopping is not None
    if is_used and config.monitor.startswith("val_") and not has_validation:
        raise UserError(
            f"{config.monitor} decides which epoch is the best, but there are no validation rows: add "
            "--validation 0.2, or give images with train/ and validation/"
        )
