"""The fit job: a feature set in, a model with a new head out."""

from __future__ import annotations

import time
from typing import Any

from tlray.cluster import session
from tlray.core.config import FitConfig
from tlray.core.runtime import has_hidden_gpus
from tlray.core.settings import configured
from tlray.core.storage import Folder, StrPath
from tlray.features.feature_set import FeatureSet
from tlray.features.part_files import ERRORS
from tlray.models import registry
from tlray.models.frozen import FrozenPart
from tlray.training import checks, holdout, model_folder, train
from tlray.training.model_folder import TrainResult
from tlray.training.worker.task import Task, targets

_CHECKPOINT_SECONDS = 10
"""Epochs of a head are short: to keep the state after each would cost more than to train again."""


def fit(
    features: StrPath,
    out: StrPath,
    config: FitConfig | None = None,
    *,
    address: str | None = None,
    report: train.Report = lambda metrics: None,
    **settings: Any,
) -> TrainResult:
    """Train a head on a feature set and write a model folder.

    Args:
        features: a finished feature set with labels.
        out: the model's folder or URI; new, empty, or of the same job, which then goes on.
        config: how to train.
        address: of a running Ray; without it a local one is started and stopped, if one is needed.
        report: called with the metrics of each epoch: epoch (from 1), loss, accuracy and, with
            validation rows, val_loss and val_accuracy.
        settings: single fields of `config`, e.g. `head="linear"`.

    Raises:
        UserError: the job cannot be done; nothing was written.
        JobError: training failed; run it again to go on.
    """
    started = time.monotonic()
    config = configured(FitConfig, config, settings)
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
    # share with. A Ray that the user has named is used all the same, and so are GPUs.
    local = config.workers == 1 and address is None and not has_hidden_gpus() and not session.has_gpus()
    cpus = checks.cpus(config, streaming=False)
    with (
        model_folder.reserved(folder, job),
        session.connect(address, cpus=cpus, ahead=not local) as connected,
    ):
        rows, validation = holdout.load(data, config)
        if not local:
            connected()
        task = Task(
            config=config,
            learning_rate=config.learning_rate or head.learning_rate,
            head=head,
            classes=len(classes),
            frozen=frozen,
            end=data.provenance.cut,
            start=None,
            features=rows.features,
            targets=targets(rows, classes),
            validation=(validation.features, targets(validation, classes)) if validation.paths else None,
            checkpoint_seconds=_CHECKPOINT_SECONDS,
        )
        about = train.About(
            job=job,
            classes=classes,
            **data.facts,
            stage={"command": "fit", "from": None, "augment": None, "views": None},
        )
        errors = ERRORS.empty_table()
        return train.run(task, folder, about, errors=errors, started=started, report=report, local=local)
