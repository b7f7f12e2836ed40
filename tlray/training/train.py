"""The part that `fit` and `finetune` share: it trains on the workers and writes the model's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tlray.core.config import TrainConfig
from tlray.core.errors import JobError, TlrayError
from tlray.core.manifest import MANIFEST, package_versions, versions
from tlray.core.record import dump
from tlray.core.results import TrainingSummary, TrainingTime
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.features import bottleneck, part_files
from tlray.models import registry
from tlray.models.model import FORMAT, ModelManifest
from tlray.training.holdout import TrainingData
from tlray.training.local_worker import LocalWorker
from tlray.training.model_folder import WORK, TrainResult, remove_work, result
from tlray.training.starting_point import StartingPoint
from tlray.training.worker import best_epoch
from tlray.training.worker.task import Report, Task, Trained, Worker, targets


def run(
    config: TrainConfig,
    starting_point: StartingPoint,
    data: TrainingData,
    folder: Folder,
    *,
    job: Mapping[str, Any],
    classes: list[str],
    facts: Mapping[str, Any],
    stage: Mapping[str, Any],
    started: float,
    report: Report,
    local: bool = False,
    checkpoint_seconds: float = 0,
) -> TrainResult:
    """Train, and write the model into its folder, which the caller has reserved.

    `facts` are the entries images, split and split_seed of the manifest; `stage` has the entries command,
    from, augment and views of this training. `local` trains in this process, without the Ray that it must be
    connected to otherwise.
    """
    task = _task(config, starting_point, data, classes, checkpoint_seconds)
    work = folder.child(WORK)
    trained = _train_here(task, work, report) if local else _train_on_ray(task, work, report)
    summary = _summary(task, trained, data, time.monotonic() - started)
    stages = [
        *starting_point.stages,
        {**stage, "head": task.head.name, "monitor": config.monitor, **trained.counts, **summary.to_json()},
    ]
    manifest = ModelManifest(
        **vars(summary),
        format=FORMAT,
        **facts,
        job=dict(job),
        provenance=task.frozen.provenance,
        end=task.end,
        head=task.head.name,
        classes=classes,
        stages=stages,
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    for name, content in trained.files.items():
        folder.write(name, content)
    header, rows = ",".join(trained.history[0]), [map(str, row.values()) for row in trained.history]
    folder.write("history.csv", "\n".join([header, *map(",".join, rows), ""]).encode())
    if data.errors.num_rows:
        part_files.write_errors(folder, 0, data.errors, {"job": job})
    folder.write(MANIFEST, dump(manifest, indent=2).encode())
    remove_work(folder)
    return result(folder, manifest, part_files.first_errors(data.errors), was_complete=False)


def _task(
    config: TrainConfig,
    starting_point: StartingPoint,
    data: TrainingData,
    classes: Sequence[str],
    checkpoint_seconds: float,
) -> Task:
    validation = data.validation
    return Task(
        config=config,
        learning_rate=starting_point.learning_rate(config),
        head=starting_point.head,
        classes=len(classes),
        frozen=starting_point.frozen,
        end=starting_point.end,
        head_weights=starting_point.head_weights,
        features=None if data.source else data.training.features,
        targets=targets(data.training, classes),
        validation=(validation.features, targets(validation, classes)) if validation.paths else None,
        source=data.source,
        has_views=data.has_views,
        checkpoint_seconds=checkpoint_seconds,
    )


def _summary(task: Task, trained: Trained, data: TrainingData, seconds: float) -> TrainingSummary:
    history, config = trained.history, task.config
    kept = best_epoch.kept(history, config)
    stopped = len(history) < config.epochs or best_epoch.stops(history, config)
    time_spent = TrainingTime(
        training=round(trained.seconds, 3),
        waited=round(trained.waited, 3),
        inference=bottleneck.inference_time(data.passes),
    )
    return TrainingSummary(
        rows=len(task.targets),
        validation_rows=len(task.validation[1]) if task.validation else 0,
        epochs=len(history),
        kept_epoch=kept + 1,
        stopped_epoch=len(history) - 1 if stopped else None,
        trainable_tensors=trained.counts["trainable_tensors"],
        tensors=trained.counts["tensors"],
        errors=data.errors.num_rows,
        metrics={name: value for name, value in history[kept].items() if name != "epoch"},
        history=[dict(metrics) for metrics in history],
        seconds=round(seconds, 3),
        limited_by=bottleneck.judge_training(time_spent, seconds),
        time=time_spent,
    )


def _train_on_ray(task: Task, work: Folder, report: Report) -> Trained:
    from tlray.training import ray_workers

    heads = [plugin.package for plugin in registry.installed("heads") if plugin.name == task.head.name]
    trained: Trained = ray_workers.run(
        _train,
        task,
        workers=(task.config.least_workers, task.config.workers),
        storage=work,
        packages=package_versions(task.frozen.provenance.package, *heads),
        streaming=task.source is not None,
        report=report,
    )
    return trained


def _train_here(task: Task, work: Folder, report: Report) -> Trained:
    try:
        trained = _train(task, LocalWorker(work, report))
    except TlrayError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise JobError(f"training failed: {type(error).__name__}: {reason}") from error
    assert trained is not None
    return trained


def _train(task: Task, worker: Worker) -> Trained | None:
    """Train in one of the processes that train together."""
    prepare_keras(max(1, len(os.sched_getaffinity(0)) // worker.count))
    from tlray.training.worker import loop

    return loop.train(task, worker)
