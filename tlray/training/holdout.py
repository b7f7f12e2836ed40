"""Which images train, and which are held out for validation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from tlray.core.config import TrainConfig
from tlray.core.errors import UserError
from tlray.features.feature_set import FeatureSet, Rows
from tlray.images.listing import assign_split


def part(config: TrainConfig, split: str | None, path: str) -> str | None:
    """What an image is used for: "training", "validation" or nothing."""
    fraction = config.validation_fraction
    if fraction is None and split is not None and split == (config.validation or "validation"):
        return "validation"
    if split not in (None, "train"):
        return None
    # Not the hash of `--split`, by which training rows are the lower ones.
    if fraction is not None and assign_split(f"validation:{path}", 1 - fraction, config.seed) == "test":
        return "validation"
    return "training"


def load(data: FeatureSet, config: TrainConfig) -> tuple[Rows, Rows]:
    """The training rows and the validation rows of a feature set; there may be none of the latter.

    Raises:
        UserError: the set has not what the settings ask for, or does not fit into memory.
        JobError: it is damaged.
    """
    where, counts = data.folder.uri, Counter[str | None](data.splits)
    counts[None] = data.manifest.rows - counts.total()
    check_parts(config, where, counts)
    row_bytes = np.dtype(data.provenance.store).itemsize * math.prod(data.shape)
    check_memory(data.manifest.rows, row_bytes, where)
    rows, validation = _divide(config, data.batches(labelled=True), (0, *data.shape))
    check_rows(config, where, rows, validation)
    return rows, validation


def check_memory(rows: int, row_bytes: int, where: str) -> None:
    """Raise UserError if features would not fit: once as they are read, and once in Ray's object store."""
    import psutil

    needed, available = 2 * rows * row_bytes, psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"training on {where} needs {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are "
            "free: keep features as --store float16, cut later, or take fewer --views"
        )


def check_parts(config: TrainConfig, where: str, splits: Mapping[str | None, int]) -> None:
    """Raise UserError if these splits (rows of each; None: without one) cannot be trained on as asked."""
    names = sorted(name for name, count in splits.items() if name is not None and count)
    if not splits.get("train") and not splits.get(None):
        raise UserError(f"{where} has no training rows: its splits are {', '.join(names)}")
    if config.validation_fraction is not None and "validation" in names:
        raise UserError(
            f"--validation {config.validation}: {where} has validation rows already; leave the option away"
        )
    named = config.validation if config.validation_fraction is None else None
    if named == "train":
        raise UserError("--validation train: the model would be validated on what it is trained on")
    if named and named not in names:
        raise UserError(
            f"--validation {config.validation}: {where} has no such split: it has "
            f"{', '.join(names) or 'no splits'}; give one of those, or a fraction such as 0.2"
        )
    _check_workers(config, where, splits.get("train", 0) + splits.get(None, 0))
    _check_watched(config, config.validation is not None or "validation" in names)


def check_rows(config: TrainConfig, where: str, training: Rows, validation: Rows) -> None:
    """Raise UserError if the rows that are left cannot be trained on."""
    if config.validation_fraction is not None and not (training.paths and validation.paths):
        raise UserError(f"--validation {config.validation} leaves no rows on one side")
    if len(set(training.labels)) < 2:
        raise UserError(
            f"{where} has {len(training.labels)} training rows, all of one class: a head needs at least two"
        )
    _check_workers(config, where, len(training.paths))
    _check_watched(config, bool(validation.paths))


def _check_workers(config: TrainConfig, where: str, rows: int) -> None:
    if rows < config.workers:
        raise UserError(
            f"--workers {config.workers}: {where} has only {rows} training rows; "
            "expected at least one for each worker"
        )


def _check_watched(config: TrainConfig, validates: bool) -> None:
    used = config.keeps_best or config.early_stopping is not None
    if used and config.monitor.startswith("val_") and not validates:
        raise UserError(
            f"{config.monitor} decides which epoch is the best, but there are no validation rows: add "
            "--validation 0.2, or give images with train/ and validation/"
        )


def _divide(config: TrainConfig, rows: Iterable[Rows], shape: tuple[int, ...]) -> tuple[Rows, Rows]:
    """The training rows and the validation rows among these."""
    found: dict[str, list[Rows]] = {"training": [], "validation": []}
    for some in rows:
        use = np.array(
            [part(config, split, path) or "" for split, path in zip(some.splits, some.paths, strict=True)]
        )
        for name, chosen in found.items():
            chosen.append(some.where(use == name))
    return Rows.join(found["training"], shape), Rows.join(found["validation"], shape)
