"""The training loop of one worker: plain Keras, with gradients averaged over all workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.core import private
from tlray.core.config import TrainConfig
from tlray.models.assemble import assemble, trained_part
from tlray.models.model import NETWORK
from tlray.training.view_stream import ViewStream
from tlray.training.worker import best_epoch
from tlray.training.worker.batches import GlobalBatches
from tlray.training.worker.checkpoint import State
from tlray.training.worker.collective import AllReduce, GlobalEpochs, RowMean, SyncedModel, averaging
from tlray.training.worker.dataset import Features, InMemory, dataset
from tlray.training.worker.task import Task, Trained, Worker

_TENSORBOARD = "tensorboard"


def train(task: Task, worker: Worker) -> Trained | None:
    """Train from the last checkpoint, if there is one; only the first worker returns the result."""
    config = task.config
    # TensorFlow must know the other workers before it computes anything.
    all_reduce = AllReduce(worker.count)
    keras.utils.set_random_seed(config.seed)
    part = trained_part(task.frozen, task.end, task.head, task.classes)
    if task.head_weights is not None:
        part.get_layer("classifier").set_weights(task.head_weights)
    model = SyncedModel(part.input, part.output, name=part.name)
    batches = GlobalBatches(
        rows=len(task.targets),
        batch_size=config.batch_size,
        workers=worker.count,
        rank=worker.rank,
        seed=config.seed,
    )
    metrics = _compile(model, task, batches.steps, all_reduce)
    with tempfile.TemporaryDirectory(prefix="tlray-", dir=worker.scratch) as folder:
        state = State(model, config, Path(folder))
        with worker.latest() as checkpoint:
            if checkpoint is not None:
                state.restore(checkpoint)
        _drop_differently(model, worker.rank)
        epochs_left = range(len(state.history), config.epochs)
        started, waited = time.monotonic(), 0.0
        if epochs_left and not best_epoch.stops(state.history, config):
            features = _features(task, batches, epochs_left)
            validation = _validation(task, worker, model)
            epochs = GlobalEpochs(all_reduce, metrics, validation, task.checkpoint_seconds)

            def finish_epoch(epoch: int, logs: dict[str, float]) -> None:
                state.add({"epoch": epoch + 1, **logs})
                model.stop_training = best_epoch.stops(state.history, config)
                worker.report(state.history[-1])
                state.check()
                if epochs.is_due:
                    if worker.rank == 0:
                        state.write()
                    worker.save(folder if worker.rank == 0 else None)

            callbacks = [
                epochs,
                *(_tensorboard(state.folder) if config.tensorboard and worker.rank == 0 else ()),
                # This comes last, so that the checkpoint has what the other callbacks write.
                keras.callbacks.LambdaCallback(on_epoch_end=finish_epoch),
            ]
            model.fit(
                dataset(features, task.targets, batches, model, epochs_left, _class_weights(task)),
                steps_per_epoch=batches.steps,
                initial_epoch=epochs_left.start,
                epochs=epochs_left.stop,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
            waited = features.waited
        seconds = time.monotonic() - started
        return _finish(state, task, seconds, waited) if worker.rank == 0 else None


def _features(task: Task, batches: GlobalBatches, epochs: range) -> Features:
    if task.source is not None:
        return ViewStream(task.source, batches, epochs)
    assert task.features is not None
    return InMemory(task.features, task.has_views)


def _class_weights(task: Task) -> npt.NDArray[np.float32] | None:
    """Return the weight of each class in the loss, (classes,), with which all classes count the same."""
    if not task.config.class_weights:
        return None
    counts = np.bincount(task.targets, minlength=task.classes)
    return (len(task.targets) / (task.classes * np.maximum(counts, 1))).astype(np.float32)


def _validation(task: Task, worker: Worker, model: keras.Model) -> tf.data.Dataset | None:
    """Return this worker's part of the validation rows, in the order they have."""
    if task.validation is None:
        return None
    features, targets = task.validation
    # A step takes up to 1,024 rows, but at most 64 MiB.
    batch_size = max(worker.count, min(1024, (64 << 20) // max(1, features[0].nbytes)))
    batches = GlobalBatches(
        rows=len(targets), batch_size=batch_size, workers=worker.count, rank=worker.rank, seed=None
    )
    return dataset(InMemory(features), targets, batches, model, range(1))


def _tensorboard(folder: Path) -> list[keras.callbacks.Callback]:
    """Write logs to a folder named by date and time, and after a checkpoint to the same folder again."""
    existing = sorted((folder / _TENSORBOARD).glob("*"))
    logs = existing[0] if existing else folder / _TENSORBOARD / f"{datetime.now():%Y%m%d-%H%M%S}"
    return [keras.callbacks.TensorBoard(str(logs), histogram_freq=1)]


def _finish(state: State, task: Task, seconds: float, waited: float) -> Trained:
    """Save a new copy of the model, because the trained one would include its optimizer."""
    trained = trained_part(task.frozen, task.end, task.head, task.classes)
    trained.set_weights(state.kept_weights())
    frozen = task.frozen.build()
    frozen.trainable = True
    trained_variables, frozen_variables = trained.trainable_variables, frozen.trainable_variables
    counts = {
        "trainable_tensors": len(trained_variables),
        "tensors": len(trained_variables) + len(frozen_variables),
        "trainable_parameters": _size(trained_variables),
        "parameters": _size(trained_variables) + _size(frozen_variables),
    }
    assemble(task.frozen, trained).save(state.folder / NETWORK)
    paths = [state.folder / NETWORK, *(state.folder / _TENSORBOARD).rglob("*")]
    files = {str(path.relative_to(state.folder)): path.read_bytes() for path in paths if path.is_file()}
    return Trained(files, state.history, counts, seconds, waited)


def _size(variables: Sequence[Any]) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _drop_differently(model: keras.Model, rank: int) -> None:
    """Give the dropout of each worker its own seed; the first worker keeps that of Keras."""
    for variable in private.seed_states(model):
        seed, count = (int(value) for value in variable.numpy())
        variable.assign([(seed + rank * 0x9E3779B9) % 2**32, count])


def _compile(model: SyncedModel, task: Task, steps: int, all_reduce: AllReduce) -> list[RowMean]:
    """Compile with the head's loss and the user's optimizer, or the head's; return the metrics."""
    is_binary = model.output_shape[-1] == 1
    loss = task.head.loss or ("binary_crossentropy" if is_binary else "categorical_crossentropy")
    accuracy = keras.metrics.binary_accuracy if is_binary else keras.metrics.categorical_accuracy
    metrics = [RowMean(keras.losses.get(loss), name="row_loss"), RowMean(accuracy, name="row_accuracy")]
    optimizer = keras.optimizers.get(task.config.optimizer or task.head.optimizer)
    optimizer.learning_rate = _schedule(task.config, task.learning_rate, steps * task.config.epochs)
    if all_reduce.count > 1:
        optimizer = averaging(optimizer, all_reduce)
        model.share_statistics(all_reduce)
    # With all steps of an epoch in one call of a graph, no time is lost in Python between steps.
    model.compile(optimizer, loss, weighted_metrics=metrics, steps_per_execution=steps, jit_compile=False)
    optimizer.build(model.trainable_variables)  # A checkpoint can be restored only into existing variables.
    return metrics


def _schedule(config: TrainConfig, learning_rate: float, steps: int) -> Any:
    """Return the learning rate by step."""
    if config.decay == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    if config.decay_rate is not None:
        return keras.optimizers.schedules.InverseTimeDecay(learning_rate, 1, config.decay_rate)
    return learning_rate
