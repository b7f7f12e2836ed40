"""What `fit` and `finetune` share: running the training on the workers, and the model's folder."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tlray.core.errors import JobError, TlrayError
from tlray.core.manifest import MANIFEST, package_versions, versions
from tlray.core.record import dump
from tlray.core.results import TrainingSummary, TrainingTime
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.features import bottleneck, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.models import registry
from tlray.models.model import FORMAT, ModelManifest
from tlray.training.local_worker import LocalWorker
from tlray.training.model_folder import WORK, TrainResult, result
from tlray.training.worker import early_stopping
from tlray.training.worker.task import Task, Trained, Worker

Report = Callable[[dict[str, float]], None]
"""Called with the metrics of each epoch: epoch (from 1), loss, accuracy and, with validation rows, val_loss
and val_accuracy."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What the manifest of a model says besides what the training finds out."""

    job: Mapping[str, Any]
    """All that the weights depend on."""
    classes: list[str]
    """In the order of the model's output."""
    images: str
    """The URI of the images."""
    split: float | None
    """The fraction of them that was assigned to `train`; None if none was."""
    split_seed: int | None
    stage: Mapping[str, Any]
    """What to say of this stage of the model's training: command, from, augment, views."""
    earlier_stages: Sequence[Mapping[str, Any]] = ()


def run(
    task: Task,
    folder: Folder,
    about: About,
    *,
    errors: pa.Table,
    started: float,
    report: Report,
    passes: Sequence[ShardTiming] = (),
    local: bool = False,
) -> TrainResult:
    """Train on the Ray this process is connected to, or in this process, and write the model.

    Args:
        task: what is trained, on what.
        folder: of the model, reserved.
        about: more for the manifest.
        errors: the images that could not be decoded, with the columns of `part_files.ERRORS`.
        started: when the command was, by `time.monotonic`.
        report: called with the metrics of each epoch.
        passes: what was done of images before the training.
        local: train in this process, without Ray.

    Raises:
        UserError: the head or the cut does not fit.
        JobError: training failed.
    """
    work = folder.child(WORK)
    trained = _train_here(task, work, report) if local else _train_on_ray(task, work, report)
    manifest = _manifest(task, about, trained, passes, errors.num_rows, time.monotonic() - started)
    for name, content in trained.files.items():
        folder.write(name, content)
    folder.write("history.csv", _csv(trained.history))
    if errors.num_rows:
        part_files.write_errors(folder, 0, errors, {"job": about.job})
    folder.write(MANIFEST, dump(manifest, indent=2).encode())
    folder.remove(WORK)
    return result(folder, manifest, part_files.first_errors(errors), was_complete=False)


def _manifest(
    task: Task, about: About, trained: Trained, passes: Sequence[ShardTiming], errors: int, seconds: float
) -> ModelManifest:
    history, config = trained.history, task.config
    kept = early_stopping.kept(history, config)
    stopped = len(history) < config.epochs or early_stopping.stops(history, config)
    spent = TrainingTime(
        training=round(trained.seconds, 3),
        waited=round(trained.waited, 3),
        inference=bottleneck.inference_time(passes),
    )
    summary = TrainingSummary(
        rows=len(task.targets),
        validation_rows=len(task.validation[1]) if task.validation else 0,
        epochs=len(history),
        kept_epoch=kept + 1,
        stopped_epoch=len(history) - 1 if stopped else None,
        trainable_tensors=trained.counts["trainable_tensors"],
        tensors=trained.counts["tensors"],
        errors=errors,
        metrics={name: value for name, value in history[kept].items() if name != "epoch"},
        history=[dict(metrics) for metrics in history],
        seconds=round(seconds, 3),
        limited_by=bottleneck.judge_training(spent, seconds),
        time=spent,
    )
    stage = {
        **about.stage,
        "head": task.head.name,
        "monitor": config.monitor,
        **trained.counts,
        **summary.to_json(),
    }
    return ModelManifest(
        **vars(summary),
        format=FORMAT,
        job=dict(about.job),
        provenance=task.frozen.provenance,
        end=task.end,
        head=task.head.name,
        classes=about.classes,
        images=about.images,
        split=about.split,
        split_seed=about.split_seed,
        stages=[*map(dict, about.earlier_stages), stage],
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
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
    """Runs in each process that trains."""
    prepare_keras(max(1, len(os.sched_getaffinity(0)) // worker.count))
    from tlray.training.worker import loop

    return loop.train(task, worker)


def _csv(history: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()
