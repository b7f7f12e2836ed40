"""The fit job: trains a new head on a feature set."""

from __future__ import annotations

import time
from typing import Any

from tlray.cluster import session
from tlray.core.config import FitConfig
from tlray.core.runtime import has_hidden_gpus
from tlray.core.settings import configured
from tlray.core.storage import Folder, StrPath
from tlray.features.feature_set import FeatureSet
from tlray.models import registry
from tlray.models.frozen import FrozenPart
from tlray.training import checks, holdout, model_folder, train
from tlray.training.model_folder import TrainResult
from tlray.training.starting_point import StartingPoint
from tlray.training.worker.task import Report

_CHECKPOINT_SECONDS = 10
"""Epochs of a head are short: a checkpoint after each would cost more than training again."""


def fit(
    features: StrPath,
    out: StrPath,
    config: FitConfig | None = None,
    *,
    address: str | None = None,
    report: Report = lambda metrics: None,
    **settings: Any,
) -> TrainResult:
    """Train a head on a feature set and write a model folder.

    Args:
        features: a finished feature set with labels.
        out: the new model's folder or URI, which is new, empty, or from the same job; that job is continued.
        config: the settings of the training.
        address: the address of a running Ray; None starts and stops a local Ray, if one is needed.
        report: called with the metrics of each epoch: epoch (from 1), loss, accuracy and, with
            validation rows, val_loss and val_accuracy.
        settings: single fields of `config`, e.g. `head="linear"`.

    Raises:
        UserError: the job cannot be done; nothing was written.
        JobError: the training failed; run it again to continue.
    """
    started = time.monotonic()
    config = configured(FitConfig, config, settings)
    data = FeatureSet.open(features)
    head = registry.head(config.head)
    labels = holdout.check_parts(config, data.folder.uri, data.counts())
    classes = checks.check(config, labels, data.folder.uri)
    folder = Folder.open(out)
    data.check_outside(folder)
    made, training = data.provenance.identity(), model_folder.identity(config)
    job = {**data.identity, "provenance": made, "training": training}
    if (result := model_folder.finished(folder, job)) is not None:
        return result
    starting_point = StartingPoint(frozen=FrozenPart.of(data.provenance), end=data.provenance.cut, head=head)
    # Ray Train takes longer to start than a head takes to train (tests/benchmarks), and with one worker there
    # is nothing to share. A Ray that the user has named is used nevertheless, and so are GPUs.
    local = config.workers == 1 and address is None and not has_hidden_gpus() and not session.has_gpus()
    cpus = checks.cpus(config, streaming=False)
    with (
        model_folder.reserved(folder, job),
        session.connect(address, cpus=cpus, ahead=not local) as connected,
    ):
        rows = holdout.load(data, config)
        if not local:
            connected()
        return train.run(
            config,
            starting_point,
            rows,
            folder,
            job=job,
            classes=classes,
            facts=data.facts,
            stage={"command": "fit", "from": None, "augment": None, "views": None},
            started=started,
            report=report,
            local=local,
            checkpoint_seconds=_CHECKPOINT_SECONDS,
        )
