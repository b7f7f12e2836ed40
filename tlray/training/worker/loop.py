"""The training loop of one Ray Train worker: plain Keras, with gradients averaged over the workers."""

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
from tlray.training.worker import early_stopping
from tlray.training.worker.batches import GlobalBatches
from tlray.training.worker.checkpoint import State
from tlray.training.worker.collective import AllReduce, SyncedModel, averaging
from tlray.training.worker.dataset import Features, InMemory, Slices
from tlray.training.worker.metrics import GlobalEpochs, RowMean
from tlray.training.worker.task import Task, Trained, Worker

_TENSORBOARD = "tensorboard"


def train(task: Task, worker: Worker) -> Trained | None:
    """Train what comes after the cut and assemble the model; goes on from the last checkpoint.

    Args:
        task: the same for all workers.
        worker: this one.

    Returns:
        The model; None on all workers but the first.

    Raises:
        UserError: the head does not fit, or the network cannot be cut there.
    """
    config = task.config
    # TensorFlow must know the other workers before it computes anything.
    all_reduce = AllReduce(worker.count)
    keras.utils.set_random_seed(config.seed)
    model = _build(task)
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
        ahead = range(len(state.history), config.epochs)
        clock, waited = time.monotonic(), 0.0
        if ahead and not early_stopping.stops(state.history, config):
            features = _features(task, batches, ahead)
            slices = Slices(features, task.targets, batches, model, _class_weights(task))
            validation = _validation(task, slices)
            epochs = GlobalEpochs(all_reduce, metrics, validation, task.checkpoint_seconds)

            def finish_epoch(epoch: int, logs: dict[str, float]) -> None:
                state.add({"epoch": epoch + 1, **logs})
                model.stop_training = early_stopping.stops(state.history, config)
                worker.report(state.history[-1])
                if epochs.due:
                    if worker.rank == 0:
                        state.write()
                    worker.save(folder if worker.rank == 0 else None)

            callbacks = [
                epochs,
                *(_tensorboard(state.folder) if config.tensorboard and worker.rank == 0 else ()),
                # The last, so that what the others write is part of the checkpoint.
                keras.callbacks.LambdaCallback(on_epoch_end=finish_epoch),
            ]
            model.fit(
                slices.dataset(ahead),
                steps_per_epoch=batches.steps,
                initial_epoch=ahead.start,
                epochs=ahead.stop,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
            waited = features.waited
        seconds = time.monotonic() - clock
        return _finish(state, task, seconds, waited) if worker.rank == 0 else None


def _features(task: Task, batches: GlobalBatches, epochs: range) -> Features:
    """The features of this worker's batches: from memory, or streamed."""
    if task.source is not None:
        return ViewStream(task.source, batches, epochs)
    assert task.features is not None
    return InMemory(task.features, task.views)


def _class_weights(task: Task) -> npt.NDArray[np.float32] | None:
    """The weight of each class in the loss, (classes,), which makes all classes count the same."""
    if not task.config.class_weights:
        return None
    counts = np.bincount(task.targets, minlength=task.classes)
    return (len(task.targets) / (task.classes * np.maximum(counts, 1))).astype(np.float32)


def _build(task: Task) -> SyncedModel:
    """The trained part, with the weights it starts from."""
    part = trained_part(task.frozen, task.end, task.head, task.classes)
    if task.start is not None:
        part.get_layer("classifier").set_weights(task.start)
    return SyncedModel(part.input, part.output, name=part.name)


def _validation(task: Task, training: Slices) -> tf.data.Dataset | None:
    """This worker's part of the validation rows, in their own order."""
    if task.validation is None:
        return None
    features, targets = task.validation
    workers, rank = training.batches.workers, training.batches.rank
    # As many as make a step of sensible size, whatever the rows are.
    batch_size = max(workers, min(1024, (64 << 20) // max(1, features[0].nbytes)))
    batches = GlobalBatches(rows=len(targets), batch_size=batch_size, workers=workers, rank=rank, seed=None)
    return Slices(InMemory(features), targets, batches, training.model).dataset(range(1))


def _tensorboard(folder: Path) -> list[keras.callbacks.Callback]:
    """Writes logs to a folder named by date and time, and goes on in the same after a checkpoint."""
    begun = sorted((folder / _TENSORBOARD).glob("*"))
    logs = begun[0] if begun else folder / _TENSORBOARD / f"{datetime.now():%Y%m%d-%H%M%S}"
    return [keras.callbacks.TensorBoard(str(logs), histogram_freq=1)]


def _finish(state: State, task: Task, seconds: float, waited: float) -> Trained:
    """The files of the model. A fresh copy is saved: the trained one would bring its optimizer along."""
    trained = trained_part(task.frozen, task.end, task.head, task.classes)
    trained.set_weights(state.kept_weights())
    below = task.frozen.build()
    below.trainable = True
    own, frozen_ones = trained.trainable_variables, below.trainable_variables
    counts = {
        "trainable_tensors": len(own),
        "tensors": len(own) + len(frozen_ones),
        "trainable_parameters": _size(own),
        "parameters": _size(own) + _size(frozen_ones),
    }
    assemble(task.frozen, trained).save(state.folder / NETWORK)
    kept = [state.folder / NETWORK, *(state.folder / _TENSORBOARD).rglob("*")]
    files = {str(path.relative_to(state.folder)): path.read_bytes() for path in kept if path.is_file()}
    return Trained(files, state.history, counts, seconds, waited)


def _size(variables: Sequence[Any]) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _drop_differently(model: keras.Model, rank: int) -> None:
    """Give the dropout of each worker a seed of its own; the first worker keeps Keras'."""
    for variable in private.seed_states(model):
        seed, count = (int(value) for value in variable.numpy())
        variable.assign([(seed + rank * 0x9E3779B9) % 2**32, count])


def _compile(model: SyncedModel, task: Task, steps: int, all_reduce: AllReduce) -> list[RowMean]:
    """Compile with the head's loss and the user's optimizer, or the head's; return the metrics."""
    binary = model.output_shape[-1] == 1
    loss = task.head.loss or ("binary_crossentropy" if binary else "categorical_crossentropy")
    accuracy = keras.metrics.binary_accuracy if binary else keras.metrics.categorical_accuracy
    metrics = [RowMean(keras.losses.get(loss), name="row_loss"), RowMean(accuracy, name="row_accuracy")]
    optimizer = keras.optimizers.get(task.config.optimizer or task.head.optimizer)
    optimizer.learning_rate = _schedule(task.config, task.learning_rate, steps * task.config.epochs)
    if all_reduce.count > 1:
        optimizer = averaging(optimizer, all_reduce)
        model.share_statistics(all_reduce)
    # An epoch is one call of a graph: from step to step nothing comes back to Python.
    model.compile(optimizer, loss, weighted_metrics=metrics, steps_per_execution=steps, jit_compile=False)
    optimizer.build(model.trainable_variables)  # So that a checkpoint has variables to go to.
    return metrics


def _schedule(config: TrainConfig, learning_rate: float, steps: int) -> Any:
    """The learning rate by step."""
    if config.decay == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    if config.decay_rate is not None:
        return keras.optimizers.schedules.InverseTimeDecay(learning_rate, 1, config.decay_rate)
    return learning_rate
