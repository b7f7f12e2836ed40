"""The fit job: a feature set in, a model out."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

import numpy as np

from tlray import cluster, plugins
from tlray.config import FitConfig
from tlray.errors import JobError, UserError, unknown
from tlray.featureset import FeatureSet, Rows
from tlray.head import Head
from tlray.listing import assign_split
from tlray.model import FORMAT, MANIFEST, NETWORK, Model
from tlray.network import FrozenPart
from tlray.plain import dump
from tlray.provenance import versions
from tlray.storage import Folder

OPTIMIZERS = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw"),
    *("ftrl", "lion", "muon", "nadam", "rmsprop", "sgd"),
)
"""Keras' own, by the names that `keras.optimizers.get` takes."""
_TRAINING = ".training"
"""In the model's folder as long as it is not complete; only beside it are other files of an earlier run."""
_FILES = (NETWORK, "history.csv", "tensorboard")


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
        out: the model's folder or URI; new, empty, or a model of the same job.
        config: how to train.
        address: of a running Ray; without it a local one is started and stopped.
        report: called with the metrics of each epoch: epoch (from 1), loss, accuracy and, with
            validation rows, val_loss and val_accuracy.

    Returns:
        JSON values: out, rows, epochs, history, seconds, and the metrics of the weights that were kept.

    Raises:
        UserError: the job cannot be; nothing was written.
        JobError: training failed.
    """
    started = time.monotonic()
    data = FeatureSet.open(features)
    head = plugins.head(config.head)
    _check(data, config)
    folder = Folder.open(out)
    job = {"features": data.folder.uri, "extraction": data.manifest["job"], "fit": asdict(config)}
    if folder.is_file(MANIFEST):
        return _finished(folder, job)
    _check_empty(folder)
    training, validation = _load(data, config)
    settings = _Settings(
        config=config,
        head=head,
        classes=data.classes,
        training=training,
        validation=validation,
        frozen=FrozenPart.of(data.provenance),
    )
    files, history = _train(settings, folder, address, report)
    kept = _kept(history, config)
    manifest = {
        "format": FORMAT,
        "job": job,
        "provenance": data.provenance.to_json(),
        "head": head.name,
        "classes": data.classes,
        "images": data.manifest["job"]["images"],
        "rows": len(training.labels),
        "validation_rows": len(validation.labels) if validation else 0,
        "epochs": len(history),
        "kept_epoch": kept["epoch"],
        "metrics": {name: value for name, value in kept.items() if name != "epoch"},
        "history": history,
        "seconds": round(time.monotonic() - started, 3),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, content in files.items():
        folder.write(name, content)
    folder.write("history.csv", _csv(history))
    folder.write(MANIFEST, dump(manifest, indent=2).encode())
    folder.remove(_TRAINING)
    return _result(folder, manifest)


def _check(data: FeatureSet, config: FitConfig) -> None:
    if config.optimizer is not None and config.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", config.optimizer, OPTIMIZERS)
    if config.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard: the package tensorboard is not installed: pip install 'tlray[tensorboard]'"
        )
    classes = data.classes
    if len(classes) < 2:
        what = f"one class ({classes[0]})" if classes else "no labels"
        raise UserError(
            f"{data.folder.uri} has {what}: a head needs at least two classes; "
            "extract from a folder with one folder for each class"
        )


def _check_empty(folder: Folder) -> None:
    """Raise UserError if a model would overwrite files that are not of an earlier run, which was killed."""
    names = set(folder.names())
    ours = {_TRAINING, *_FILES} if _TRAINING in names else set()
    if any(not name.endswith(".tmp") for name in names - ours):
        raise UserError(f"{folder.uri} is not empty and is no model of tlray: choose a new folder")


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What the workers need; `shared` puts the arrays into Ray's object store, once for each node."""

    config: FitConfig
    head: Head
    classes: list[str]
    training: Rows
    validation: Rows | None
    frozen: FrozenPart

    def shared(self) -> dict[str, Any]:
        import ray

        def examples(rows: Rows) -> Any:
            number: dict[str | None, int] = {label: index for index, label in enumerate(self.classes)}
            targets = np.array([number[label] for label in rows.labels], np.int64)
            return ray.put((rows.features, targets))

        return {
            "config": self.config,
            "head": self.head,
            "classes": len(self.classes),
            "training": examples(self.training),
            "validation": examples(self.validation) if self.validation else None,
            "backbone": self.frozen.backbone,
            "arrays": ray.put(list(self.frozen.arrays)),
            "provenance": self.frozen.provenance,
        }


def _train(
    settings: _Settings, folder: Folder, address: str | None, report: Callable[[dict[str, float]], None]
) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """Run the training; the files of the model's folder, and the metrics of each epoch."""
    history: list[dict[str, float]] = []

    def record(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 1:  # Again, if a worker was lost and training started anew.
            history.clear()
        history.append(metrics)
        report(metrics)

    was_there = folder.exists()
    with cluster.connect(address, cpus=settings.config.workers):
        from tlray import trainer

        try:
            folder.remove(_TRAINING)  # Or Ray Train would look there for an earlier run's state.
            files = trainer.run(
                _loop,
                settings.shared(),
                workers=settings.config.workers,
                storage=folder.child(_TRAINING),
                report=record,
            )
        except BaseException:
            folder.remove(_TRAINING)
            if not was_there:
                folder.remove_empty()
            raise
    return files, history


def _loop(
    settings: Mapping[str, Any], rank: int, count: int, report: Callable[[dict[str, float]], None]
) -> dict[str, bytes]:
    """Runs in each worker."""
    import ray

    from tlray.runtime import prepare_keras

    prepare_keras(max(1, len(os.sched_getaffinity(0)) // count))
    from tlray import worker

    validation = settings["validation"]
    return worker.train(
        config=settings["config"],
        head=settings["head"],
        classes=settings["classes"],
        training=worker.Examples(*ray.get(settings["training"])),
        validation=worker.Examples(*ray.get(validation)) if validation else None,
        frozen=FrozenPart(settings["backbone"], ray.get(settings["arrays"]), settings["provenance"]),
        rank=rank,
        workers=worker.Workers(count),
        report=report,
    )


def _load(data: FeatureSet, config: FitConfig) -> tuple[Rows, Rows | None]:
    """The training rows and, where there are any, the validation rows."""
    splits = data.splits
    if splits and not splits.get("train"):
        raise UserError(f"{data.folder.uri} has no training rows: its splits are {', '.join(splits)}")
    _check_memory(data)
    training = data.load("train" if splits else None)
    validation = data.load("validation") if splits.get("validation") else None
    if config.validation is not None:
        if validation is not None:
            raise UserError(
                f"--validation {config.validation:g}: {data.folder.uri} has validation rows already; "
                "leave the option away"
            )
        held_out = np.array(
            [
                # Not the hash of `extract --split`, by which these rows are the lower ones.
                assign_split(f"validation:{path}", 1 - config.validation, config.seed) == "test"
                for path in training.paths
            ]
        )
        training, validation = training.where(~held_out), training.where(held_out)
        if not training.labels or not validation.labels:
            raise UserError(f"--validation {config.validation:g} leaves no rows on one side")
    if len(set(training.labels)) < 2:
        raise UserError(
            f"{data.folder.uri} has one class among its training rows ({training.labels[0]}): "
            "a head needs at least two"
        )
    if config.early_stopping is not None and validation is None:
        raise UserError(
            "--early-stopping needs validation rows and there are none: add --validation 0.2, "
            "or extract from a folder with train/ and validation/"
        )
    return training, validation


def _check_memory(data: FeatureSet) -> None:
    """Raise JobError if the features would not fit: once as they are read, and once in Ray's object store."""
    import psutil

    needed = 2 * data.manifest["rows"] * np.dtype(data.provenance.store).itemsize * math.prod(data.shape)
    available = psutil.virtual_memory().available
    if needed > available:
        raise JobError(
            f"training on {data.folder.uri} needs {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB are free: extract with --store float16 or a later --cut"
        )


def _kept(history: list[dict[str, float]], config: FitConfig) -> dict[str, float]:
    """The metrics of the weights in the model: the best epoch's with early stopping, else the last's."""
    if config.early_stopping is None:
        return history[-1]
    return min(history, key=lambda metrics: metrics["val_loss"])


def _finished(folder: Folder, job: dict[str, Any]) -> dict[str, Any]:
    """The result of the same job, run before."""
    there = Model.open(folder.uri).manifest
    if there["job"] != json.loads(json.dumps(job)):
        raise UserError(
            f"{folder.uri} holds a model of another job: choose another folder, or remove this one"
        )
    return _result(folder, there)


def _result(folder: Folder, manifest: Mapping[str, Any]) -> dict[str, Any]:
    names = ("rows", "validation_rows", "epochs", "kept_epoch", "metrics", "history", "seconds")
    return {"out": folder.uri, **{name: manifest[name] for name in names}}


def _csv(history: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()
