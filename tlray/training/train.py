"""What `fit` and `finetune` share: running the training on the workers, and the model's folder."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.core.config import TrainConfig
from tlray.core.errors import JobError, TlrayError
from tlray.core.manifest import dump, package_versions, versions
from tlray.core.storage import Folder
from tlray.features import bottleneck
from tlray.features.bottleneck import ShardTiming
from tlray.features.feature_set import Rows
from tlray.features.part_files import write_errors
from tlray.models import registry
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Head
from tlray.models.layers import Arrays
from tlray.models.model import FORMAT, MANIFEST
from tlray.training.model_folder import RESULT, WORK, result
from tlray.training.view_stream import ViewSource
from tlray.training.worker import early_stopping
from tlray.training.worker.task import Trained

Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, decided on in full."""

    config: TrainConfig
    learning_rate: float
    head: Head
    classes: list[str]
    frozen: FrozenPart
    """With the weights of the whole network, in the tail those to start from."""
    end: str
    """The layer of the backbone that the head follows on; the cut, if only the head is trained."""
    start: Arrays | None
    """Of the head; None: new ones."""
    training: Rows
    """Without features worth having, if there is a source."""
    validation: Rows
    """There may be none."""
    source: ViewSource | None = None
    """Where the features of the training rows come from, if not with them."""
    views: bool = False
    """Whether each training row has several views, (rows, views, *shape)."""
    checkpoint_seconds: float = 0
    """The least time between checkpoints; 0 is one after each epoch."""


def run(
    training: Training,
    folder: Folder,
    job: Mapping[str, Any],
    *,
    facts: Mapping[str, Any],
    errors: pa.Table,
    stage: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    started: float,
    report: Report,
    passes: Sequence[ShardTiming] = (),
    alone: bool = False,
) -> dict[str, Any]:
    """Train on the Ray this process is connected to, or alone in this process, and write the model.

    Args:
        training: what is trained, on what.
        folder: of the model, claimed.
        job: stands in the manifest.
        facts: more for the manifest: images, split, split_seed.
        errors: the images that could not be decoded, with the columns of `part_files.ERRORS`.
        stage: what to say of this stage of the model's training.
        before: the stages before this one.
        started: when the command was, by `time.monotonic`.
        report: called with the metrics of each epoch.
        passes: what was done of images before the training.
        alone: train in this process, without Ray.

    Returns:
        JSON values, as `fit` returns them.

    Raises:
        UserError: the head or the cut does not fit.
        JobError: training failed.
    """
    work = folder.child(WORK)
    trained = _here(training, work, report) if alone else _on_workers(training, work, report)
    judged = bottleneck.judge_training(passes, trained.seconds, trained.waited)
    seconds = {"seconds": round(time.monotonic() - started, 3)}
    about = {**stage, **_told(training, trained), **judged, **seconds}
    manifest = {
        "format": FORMAT,
        "job": job,
        "provenance": training.frozen.provenance.to_json(),
        "end": training.end,
        "classes": training.classes,
        **facts,
        "rows": len(training.training.paths),
        "validation_rows": len(training.validation.paths),
        "errors": errors.num_rows,
        **{name: about[name] for name in ("head", *RESULT) if name in about},
        "stages": [*before, about],
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, content in trained.files.items():
        folder.write(name, content)
    folder.write("history.csv", _csv(trained.history))
    if errors.num_rows:
        write_errors(folder, 0, errors, {"job": job})
    folder.write(MANIFEST, dump(manifest, indent=2).encode())
    folder.remove(WORK)
    return result(folder, manifest)


def _told(training: Training, trained: Trained) -> dict[str, Any]:
    """What the manifest tells of a stage of a model's training."""
    history, config = trained.history, training.config
    best = early_stopping.kept(history, config)
    early = len(history) < config.epochs or early_stopping.stops(history, config)
    return {
        "head": training.head.name,
        "epochs": len(history),
        "kept_epoch": best + 1,
        "stopped_epoch": len(history) - 1 if early else None,
        "monitor": config.monitor,
        **trained.counts,
        "metrics": {name: value for name, value in history[best].items() if name != "epoch"},
        "history": history,
    }


def _on_workers(training: Training, work: Folder, report: Report) -> Trained:
    """Train with Ray Train; the arrays lie in Ray's object store, once for each node."""
    import ray

    from tlray.training import ray_workers

    heads = [plugin.package for plugin in registry.installed("heads") if plugin.name == training.head.name]
    trained: Trained = ray_workers.run(
        _loop_of_worker,
        _shared(training, ray.put),
        workers=(training.config.least_workers, training.config.workers),
        storage=work,
        packages=package_versions(training.frozen.provenance.package, *heads),
        streaming=training.source is not None,
        report=report,
    )
    return trained


def _here(training: Training, work: Folder, report: Report) -> Trained:
    """Train in this process."""
    from tlray.training.local_worker import LocalWorker

    try:
        trained: Trained = _loop(
            _shared(training, lambda value: value), LocalWorker(work, report), lambda value: value
        )
    except TlrayError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise JobError(f"training failed: {type(error).__name__}: {reason}") from error
    return trained


def _shared(training: Training, put: Callable[[Any], Any]) -> dict[str, Any]:
    """What every worker needs, with the arrays as `put` makes them shared."""
    number: dict[str | None, int] = {label: index for index, label in enumerate(training.classes)}

    def targets(rows: Rows) -> Any:
        return np.array([number[label] for label in rows.labels], np.int64)

    in_training = targets(training.training)
    weights = None
    if training.config.class_weights:
        counts = np.bincount(in_training, minlength=len(number))
        weights = (len(in_training) / (len(number) * np.maximum(counts, 1))).astype(np.float32)
    held_out = training.validation
    shared = {field.name: getattr(training, field.name) for field in fields(training)}
    return {
        **shared,
        "classes": len(training.classes),
        "frozen": replace(training.frozen, arrays=put(list(training.frozen.arrays))),
        "training": put((None if training.source else training.training.features, in_training)),
        "validation": put((held_out.features, targets(held_out))) if held_out.paths else None,
        "class_weights": weights,
    }


def _loop_of_worker(settings: Mapping[str, Any], worker: Any) -> Any:
    """Runs in each worker of Ray Train."""
    import ray

    return _loop(settings, worker, ray.get)


def _loop(settings: Mapping[str, Any], worker: Any, get: Callable[[Any], Any]) -> Any:
    """Runs in each process that trains; `get` undoes what made the arrays shared."""
    from tlray.core.runtime import prepare_keras

    prepare_keras(max(1, len(os.sched_getaffinity(0)) // worker.count))
    from tlray.training.view_stream import ViewStream
    from tlray.training.worker import loop
    from tlray.training.worker.collective import Workers
    from tlray.training.worker.dataset import InMemory
    from tlray.training.worker.task import Task

    given = dict(settings)
    source, views = given.pop("source"), given.pop("views")
    features, targets = get(given.pop("training"))
    frozen = given.pop("frozen")
    validation = given.pop("validation")
    task = Task(
        **given,
        frozen=replace(frozen, arrays=get(frozen.arrays)),
        features=lambda batches, epochs: (
            ViewStream(source, batches, epochs) if source else InMemory(features, views)
        ),
        targets=targets,
        validation=get(validation) if validation else None,
    )
    return loop.train(
        task,
        rank=worker.rank,
        workers=Workers(worker.count),
        checkpoints=worker,
        scratch=worker.scratch,
        report=worker.report,
    )


def _csv(history: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()
