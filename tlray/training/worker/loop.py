"""The training loop of one Ray Train worker: plain Keras, with gradients averaged over the workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.core.config import TrainConfig
from tlray.models.assemble import assemble, trained_part
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Head
from tlray.models.model import NETWORK
from tlray.training.train import Trained
from tlray.training.worker import early_stopping
from tlray.training.worker.batches import GlobalBatches
from tlray.training.worker.checkpoint import State, seeds
from tlray.training.worker.collective import Network, Workers, averaging

_TENSORBOARD = "tensorboard"
_STEPS_AHEAD = 4


class Features(Protocol):
    """Where the inputs of the trained part come from."""

    waited: float
    """Seconds that were spent waiting for them to be made."""

    def take(self, epoch: int, step: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The features of these rows in that step of that epoch, (rows, *shape)."""


@dataclass(frozen=True)
class InMemory:
    """Features that are the same in every epoch, or K views of every row, taken in turn.

    The arrays may lie in Ray's object store, read-only.
    """

    features: npt.NDArray[Any]
    """(rows, *shape), or (rows, K, *shape)."""
    views: bool = False
    waited = 0.0

    def take(self, epoch: int, step: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        where = (rows, epoch % self.features.shape[1]) if self.views else rows
        found: npt.NDArray[Any] = self.features[where]
        return found


class Checkpoints(Protocol):
    """Where the state of training is kept."""

    def latest(self) -> AbstractContextManager[str | None]:
        """The folder of the last checkpoint, for as long as the block lasts."""

    def save(self, folder: str | None) -> None:
        """Keep a copy of this folder as the checkpoint; all workers call it together, one has a folder."""


@dataclass(frozen=True)
class _Slices:
    """This worker's part of the batches, for Keras' fit."""

    features: Features
    targets: npt.NDArray[np.int64]
    batches: GlobalBatches
    model: keras.Model
    class_weights: npt.NDArray[np.float32] | None = None

    def dataset(self, epochs: range) -> tf.data.Dataset:
        """The features, encoded targets and weights of each step of these epochs.

        Taken ahead in a thread of its own, so that no step waits for it.
        """
        signature = (
            tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32),
            tf.TensorSpec((None, self.model.output_shape[-1]), tf.float32),
            tf.TensorSpec((None,), tf.float32),
        )
        steps = tf.data.Dataset.from_generator(lambda: self._steps(epochs), output_signature=signature)
        options = tf.data.Options()
        options.autotune.enabled = False  # There is nothing to tune, and its thread would be waited for.
        counted = tf.data.experimental.assert_cardinality(len(epochs) * self.batches.steps)
        return steps.apply(counted).prefetch(_STEPS_AHEAD).with_options(options)

    def _steps(self, epochs: range) -> Iterator[tuple[Any, Any, Any]]:
        outputs = self.model.output_shape[-1]
        for epoch in epochs:
            order = self.batches.order(epoch)
            for step in range(self.batches.steps):
                rows, weights = self.batches.slice(order, step)
                targets = self.targets[rows]
                encoded = targets[:, None] if outputs == 1 else np.eye(outputs, dtype=np.float32)[targets]
                if self.class_weights is not None:
                    weights = weights * self.class_weights[targets]
                yield self.features.take(epoch, step, rows), encoded, weights


class _RowMean(keras.metrics.MeanMetricWrapper):
    """The mean over real rows: padding has weight 0, and the scale of the other weights is the loss's."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true, y_pred, keras.ops.sign(sample_weight))


class _GlobalEpochs(keras.callbacks.Callback):
    """Makes the logs of an epoch those of all workers' rows.

    Must stand before the callbacks that read the logs.
    """

    def __init__(
        self,
        workers: Workers,
        metrics: list[_RowMean],
        validation: tf.data.Dataset | None,
        checkpoint_seconds: float,
    ) -> None:
        super().__init__()
        self.validation = validation
        self.metrics = metrics
        self.checkpoint_seconds, self.last = checkpoint_seconds, time.monotonic()
        self.due = False
        """Whether the epoch that ended shall have a checkpoint."""
        self._sum = tf.function(workers.sum, autograph=False)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        means, self.due = self._means()
        logs.clear()
        logs.update(means)
        if self.validation is not None:
            self.model.evaluate(self.validation, verbose=0)
            logs.update({f"val_{name}": value for name, value in self._means()[0].items()})
        if self.due:
            self.last = time.monotonic()

    def _means(self) -> tuple[dict[str, float], bool]:
        """The metrics over all workers, and whether any of them finds that a checkpoint is due."""
        due = time.monotonic() - self.last >= self.checkpoint_seconds
        state = np.array(
            [*([metric.total.numpy(), metric.count.numpy()] for metric in self.metrics), [due, 0]], np.float64
        )
        *sums, (due_somewhere, _) = self._sum(tf.constant(state)).numpy()
        means = {
            metric.name.removeprefix("row_"): float(total / count)
            for metric, (total, count) in zip(self.metrics, sums, strict=True)
        }
        return means, bool(due_somewhere)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every worker is told."""

    config: TrainConfig
    learning_rate: float
    """The first one."""
    head: Head
    classes: int
    frozen: FrozenPart
    """What makes the features, with the weights of the whole network; a part of the model."""
    end: str
    """The layer of the backbone that the head follows on; the cut, if only the head is trained."""
    start: Sequence[npt.NDArray[Any]] | None
    """Weights of the head; None: new ones."""
    features: Callable[[GlobalBatches, range], Features]
    """Makes the training rows' features, given a worker's batches and the epochs to come."""
    targets: npt.NDArray[np.int64]
    """Class of each training row, (rows,)."""
    class_weights: npt.NDArray[np.float32] | None
    """Weight of each class in the loss, (classes,)."""
    validation: tuple[npt.NDArray[Any], npt.NDArray[np.int64]] | None
    """Features and classes of all validation rows."""
    checkpoint_seconds: float
    """The least time between checkpoints; 0 is one after each epoch."""


def train(
    task: Task,
    *,
    rank: int,
    workers: Workers,
    checkpoints: Checkpoints,
    scratch: str | None,
    report: Callable[[dict[str, float]], None],
) -> Trained | None:
    """Train what comes after the cut and assemble the model; goes on from the last checkpoint.

    Args:
        task: the same for all workers.
        rank: of this worker.
        workers: all of them.
        checkpoints: where the state is kept.
        scratch: a local folder for temporary files; None: the system's.
        report: called with the metrics of each epoch, the same on each worker.

    Returns:
        The model; only on rank 0.

    Raises:
        UserError: the head does not fit, or the network cannot be cut there.
    """
    config = task.config
    keras.utils.set_random_seed(config.seed)
    model = _build(task)
    batches = GlobalBatches(
        rows=len(task.targets),
        batch_size=config.batch_size,
        workers=workers.count,
        rank=rank,
        seed=config.seed,
    )
    metrics = _compile(model, task, batches.steps, workers)
    with tempfile.TemporaryDirectory(prefix="tlray-", dir=scratch) as name:
        state = State(model, config, Path(name))
        with checkpoints.latest() as checkpoint:
            if checkpoint is not None:
                state.restore(checkpoint)
        _drop_differently(model, rank)
        ahead = range(len(state.history), config.epochs)
        clock, waited = time.monotonic(), 0.0
        if ahead and not early_stopping.stops(state.history, config):
            seen = _Slices(task.features(batches, ahead), task.targets, batches, model, task.class_weights)
            epochs = _GlobalEpochs(workers, metrics, _held_out(task, seen), task.checkpoint_seconds)

            def finish_epoch(epoch: int, logs: dict[str, float]) -> None:
                found = {"epoch": epoch + 1, **logs}
                state.add(found)
                model.stop_training = early_stopping.stops(state.history, config)
                report(found)
                if epochs.due:
                    if rank == 0:
                        state.write()
                    checkpoints.save(name if rank == 0 else None)

            callbacks = [
                epochs,
                *(_tensorboard(state.folder) if config.tensorboard and rank == 0 else ()),
                # The last, so that what the others write is part of the checkpoint.
                keras.callbacks.LambdaCallback(on_epoch_end=finish_epoch),
            ]
            model.fit(
                seen.dataset(ahead),
                steps_per_epoch=batches.steps,
                initial_epoch=ahead.start,
                epochs=ahead.stop,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
            waited = seen.features.waited
        seconds = time.monotonic() - clock
        return _finish(state, task, seconds, waited) if rank == 0 else None


def _build(task: Task) -> Network:
    """The trained part, with the weights it starts from."""
    part = trained_part(task.frozen, task.end, task.head, task.classes)
    if task.start is not None:
        part.get_layer("classifier").set_weights(task.start)
    return Network(part.input, part.output, name=part.name)


def _held_out(task: Task, seen: _Slices) -> tf.data.Dataset | None:
    """This worker's part of the validation rows, in their own order."""
    if task.validation is None:
        return None
    features, targets = task.validation
    workers, rank = seen.batches.workers, seen.batches.rank
    # As many as make a step of sensible size, whatever the rows are.
    batch_size = max(workers, min(1024, (64 << 20) // max(1, features[0].nbytes)))
    batches = GlobalBatches(rows=len(targets), batch_size=batch_size, workers=workers, rank=rank, seed=None)
    return _Slices(InMemory(features), targets, batches, seen.model).dataset(range(1))


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
    for variable in seeds(model):
        seed, count = (int(value) for value in variable.numpy())
        variable.assign([(seed + rank * 0x9E3779B9) % 2**32, count])


def _compile(model: Network, task: Task, steps: int, workers: Workers) -> list[_RowMean]:
    """Compile with the head's loss and the user's optimizer, or the head's; return the metrics."""
    binary = model.output_shape[-1] == 1
    loss = task.head.loss or ("binary_crossentropy" if binary else "categorical_crossentropy")
    accuracy = keras.metrics.binary_accuracy if binary else keras.metrics.categorical_accuracy
    metrics = [_RowMean(keras.losses.get(loss), name="row_loss"), _RowMean(accuracy, name="row_accuracy")]
    optimizer = keras.optimizers.get(task.config.optimizer or task.head.optimizer)
    optimizer.learning_rate = _schedule(task.config, task.learning_rate, steps * task.config.epochs)
    if workers.count > 1:
        optimizer = averaging(optimizer, workers)
        model.share_statistics(workers)
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
