"""The fit job: a feature set in, a model with a new head out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from tlray import cluster, holdout, plugins, training
from tlray.config import FitConfig, TrainConfig
from tlray.errors import UserError
from tlray.featureset import FeatureSet, Rows
from tlray.network import FrozenPart
from tlray.storage import Folder

_CHECKPOINT_SECONDS = 10
"""Epochs of a head are short: to keep the state after each would cost more than to train again."""


def fit(
    features: str,
    out: str,
    config: FitConfig,
    *,
    address: str | None = None,
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> dict[str, Any]:
    """Train a head on a feature set and write a model folder.

    Args:
        features: a finished feature set with labels.
        out: the model's folder or URI; new, empty, or of the same job, with which it goes on.
        config: how to train.
        address: of a running Ray; without it a local one is started and stopped.
        report: called with the metrics of each epoch: epoch (from 1), loss, accuracy and, with
            validation rows, val_loss and val_accuracy.

    Returns:
        JSON values: out, rows, validation_rows, epochs, kept_epoch (from 1), stopped_epoch (from 0, as
        Keras counts; None if not stopped early), trainable_tensors, tensors, metrics (of the weights
        that were kept), history, seconds.

    Raises:
        UserError: the job cannot be; nothing was written.
        JobError: training failed; run it again to go on.
    """
    started = time.monotonic()
    data = FeatureSet.open(features)
    head = plugins.head(config.head)
    classes = training.check(config, data.classes, data.folder.uri)
    folder = Folder.open(out)
    job = {"features": data.folder.uri, "extraction": data.manifest["job"], "training": asdict(config)}
    if (result := training.finished(folder, job)) is not None:
        return result
    rows, validation = load(data, config)
    frozen = FrozenPart.of(data.provenance)
    was_there = folder.exists()
    begun = training.begin(folder, job)
    try:
        with cluster.connect(address, cpus=training.cpus(config, streaming=False)):
            return training.run(
                training.Training(
                    config=config,
                    learning_rate=config.learning_rate or head.learning_rate,
                    head=head,
                    classes=classes,
                    frozen=frozen,
                    end=data.provenance.cut,
                    start=None,
                    training=rows,
                    validation=validation,
                    checkpoint_seconds=_CHECKPOINT_SECONDS,
                ),
                folder,
                job,
                facts=facts_of(data),
                stage={"command": "fit", "from": None, "augment": None, "views": None},
                before=[],
                started=started,
                report=report,
            )
    except UserError:
        if not begun:
            training.abandon(folder, was_there)
        raise


def load(data: FeatureSet, config: TrainConfig) -> tuple[Rows, Rows]:
    """The training rows and the validation rows of a feature set; there may be none of the latter.

    Raises:
        UserError: the set has not what the settings ask for.
        JobError: it does not fit into memory, or is damaged.
    """
    where, splits = data.folder.uri, data.splits
    counts: Counter[str | None] = Counter(splits)
    counts[None] = data.manifest["rows"] - counts.total()
    holdout.check_parts(config, where, counts)
    row_bytes = np.dtype(data.provenance.store).itemsize * math.prod(data.shape)
    training.check_memory(data.manifest["rows"], row_bytes, where)
    rows, validation = holdout.divide(config, data.batches(None), (0, *data.shape))
    holdout.check_rows(config, where, rows, validation)
    return rows, validation


def facts_of(data: FeatureSet) -> dict[str, Any]:
    """Which images features are of, and how they were split, for the manifest of a model."""
    job = data.manifest["job"]
    return {"images": job["images"], "split": job["split"], "split_seed": job["seed"]}
