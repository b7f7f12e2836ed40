"""The fit job: a feature set in, a model with a new head out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tlray.cluster import session
from tlray.core.config import FitConfig
from tlray.core.runtime import has_hidden_gpus
from tlray.core.storage import Folder
from tlray.features.feature_set import FeatureSet
from tlray.features.part_files import ERRORS
from tlray.models import registry
from tlray.models.frozen import FrozenPart
from tlray.training import checks, holdout, model_folder, train

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
        Keras counts; None if not stopped early), trainable_tensors, tensors, errors (images that could not
        be decoded, of those gone through here), metrics (of the weights that were kept), history, seconds.

    Raises:
        UserError: the job cannot be; nothing was written.
        JobError: training failed; run it again to go on.
    """
    started = time.monotonic()
    data = FeatureSet.open(features)
    head = registry.head(config.head)
    classes = checks.check(config, data.classes, data.folder.uri)
    folder = Folder.open(out)
    job = {
        **data.identity,
        "provenance": data.provenance.identity(),
        "training": model_folder.identity(config),
    }
    if (result := model_folder.finished(folder, job)) is not None:
        return result
    frozen = FrozenPart.of(data.provenance)
    # To start Ray Train takes longer than to train a head (tests/benchmarks), and one worker has nobody to
    # share with. GPUs that were hidden from this process are there for a worker.
    alone = config.workers == 1 and not (address or session.is_connected() or has_hidden_gpus())
    cpus = checks.cpus(config, streaming=False)
    with (
        model_folder.reserved(folder, job),
        session.connect(address, cpus=cpus, ahead=not alone) as connected,
    ):
        rows, validation = holdout.load(data, config)
        if not alone:
            connected()
        return train.run(
            train.Training(
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
            facts=data.facts,
            errors=ERRORS.empty_table(),
            stage={"command": "fit", "from": None, "augment": None, "views": None},
            before=[],
            started=started,
            report=report,
            alone=alone,
        )
