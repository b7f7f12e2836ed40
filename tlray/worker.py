"""The training loop of one Ray Train worker: plain Keras, with gradients averaged over the workers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.batches import GlobalBatches
from tlray.config import FitConfig
from tlray.errors import UserError
from tlray.head import Head
from tlray.model import assemble
from tlray.network import FrozenPart


@dataclass(frozen=True)
class Examples:
    """Training or validation rows; the arrays may lie in Ray's object store, read-only."""

    features: npt.NDArray[Any]
    """(rows, *shape)."""
    targets: npt.NDArray[np.int64]
    """Class of each row, (rows,)."""


class Workers:
    """The sum of a tensor over all training workers; with one worker, the tensor."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._calls = 0
        # Only for the collective runtime it brings up from TF_CONFIG: Keras 3's fit does not
        # work under this strategy (keras#20585), so nothing is built in its scope.
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy() if count > 1 else None

    def sum(self, tensor: Any) -> Any:
        """Sum; every worker must call it equally often, inside a traced function."""
        if self.count == 1:
            return tensor
        self._calls += 1
        return tf.raw_ops.CollectiveReduceV2(
            input=tensor,
            group_size=self.count,
            group_key=1,
            instance_key=self._calls,
            ordering_token=[],
            merge_op="Add",
            final_op="Id",
        )


class _Slices(keras.utils.PyDataset):
    """This worker's part of the batches of an epoch, for Keras' fit."""

    def __init__(self, examples: Examples, batches: GlobalBatches, outputs: int) -> None:
        super().__init__()
        self.examples, self.batches, self.outputs = examples, batches, outputs
        self.order = batches.order(0)

    def __len__(self) -> int:
        return self.batches.steps

    def __getitem__(self, step: int) -> tuple[Any, Any, Any]:
        rows, weights = self.batches.slice(self.order, step)
        targets = self.examples.targets[rows]
        encoded = targets[:, None] if self.outputs == 1 else np.eye(self.outputs)[targets]
        return self.examples.features[rows].astype(np.float32), encoded.astype(np.float32), weights

    def start(self, epoch: int) -> None:
        """Put the rows in the order of an epoch. Keras' own `on_epoch_end` also comes before the first."""
        self.order = self.batches.order(epoch)


class _RowMean(keras.metrics.MeanMetricWrapper):
    """The mean over real rows: padding has weight 0, and the scale of the other weights is the loss's."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true, y_pred, keras.ops.sign(sample_weight))


class _GlobalEpochs(keras.callbacks.Callback):
    """Gives an epoch its rows, and makes its logs those of all workers' rows.

    Must stand before the callbacks that read the logs.
    """

    def __init__(
        self,
        workers: Workers,
        metrics: list[_RowMean],
        training: _Slices,
        validation: _Slices | None,
        report: Callable[[dict[str, float]], None],
    ) -> None:
        super().__init__()
        self.training, self.validation = training, validation
        self.metrics, self.report = metrics, report
        self._sum = tf.function(workers.sum, autograph=False)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.training.start(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logs.clear()
        logs.update(self._means())
        if self.validation is not None:
            self.model.evaluate(self.validation, verbose=0)
            logs.update({f"val_{name}": value for name, value in self._means().items()})
        self.report({"epoch": epoch + 1, **logs})

    def _means(self) -> dict[str, float]:
        state = np.array(
            [[metric.total.numpy(), metric.count.numpy()] for metric in self.metrics], np.float64
        )
        sums = self._sum(tf.constant(state)).numpy()
        return {
            metric.name.removeprefix("row_"): float(total / count)
            for metric, (total, count) in zip(self.metrics, sums, strict=True)
        }


def _averaging(optimizer: keras.Optimizer, workers: Workers) -> keras.Optimizer:
    """The same optimizer, made to average the gradients over the workers before each step."""
    kind: Any = type(optimizer)

    class Averaging(kind):
        def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
            # One collective for all: many small ones would wait for each other.
            flat = workers.sum(tf.concat([tf.reshape(grad, [-1]) for grad in grads], 0)) / workers.count
            parts = tf.split(flat, [int(np.prod(grad.shape)) for grad in grads])
            averaged = [tf.reshape(part, grad.shape) for part, grad in zip(parts, grads, strict=True)]
            super().apply(averaged, trainable_variables)

    averaging: keras.Optimizer = Averaging.from_config(optimizer.get_config())
    return averaging


def build_head(head: Head, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build a head and check what the plugin made.

    Raises:
        UserError: it does not fit the features or the classes.
    """
    try:
        model = head.build(feature_shape, classes)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"head {head.name!r} does not fit features of shape {feature_shape}: {reason}"
        ) from error
    for layer in model._flatten_layers():
        if not type(layer).__module__.startswith("keras."):
            raise UserError(
                f"head {head.name!r} uses a layer of its own, {type(layer).__name__}, without which its "
                "model would not load: use Keras' layers and keras.ops"
            )
    width = model.output_shape[-1]
    if len(model.output_shape) != 2 or width not in ({1, 2} if classes == 2 else {classes}):
        raise UserError(
            f"head {head.name!r} does not fit {classes} classes: its output has shape {model.output_shape}, "
            f"expected (batch, {classes})"
        )
    return model


def train(
    *,
    config: FitConfig,
    head: Head,
    classes: int,
    training: Examples,
    validation: Examples | None,
    frozen: FrozenPart,
    rank: int,
    workers: Workers,
    report: Callable[[dict[str, float]], None],
) -> dict[str, bytes]:
    """Train a head and assemble the model.

    Args:
        config: settings.
        head: the plugin.
        classes: how many.
        training: all training rows; this worker takes its part of each batch.
        validation: all validation rows, or None.
        frozen: what made the features; becomes a part of the model.
        rank: of this worker.
        workers: all of them.
        report: called with the metrics of each epoch, the same on each worker.

    Returns:
        The files of the model's folder, by name; only on rank 0.

    Raises:
        UserError: the head does not fit.
    """
    keras.utils.set_random_seed(config.seed)
    model = build_head(head, training.features.shape[1:], classes)
    if workers.count > 1 and any("moving" in variable.path for variable in model.non_trainable_variables):
        raise UserError(
            f"head {head.name!r} has batch statistics, which each worker would take of its own rows: "
            "train it with --workers 1"
        )
    _drop_differently(model, rank)
    metrics = _compile(model, head, config, workers)

    def slices(examples: Examples, seed: int | None) -> _Slices:
        batches = GlobalBatches(
            rows=len(examples.targets),
            batch_size=config.batch_size if seed is not None else 1024,
            workers=workers.count,
            rank=rank,
            seed=seed,
        )
        return _Slices(examples, batches, model.output_shape[-1])

    # Below Ray's folder, in which a worker runs: one that is killed leaves nothing elsewhere.
    with tempfile.TemporaryDirectory(prefix="tlray-", dir=".") as name:
        folder = Path(name)
        seen = slices(training, config.seed)
        held_out = slices(validation, None) if validation is not None else None
        callbacks: list[keras.callbacks.Callback] = [_GlobalEpochs(workers, metrics, seen, held_out, report)]
        if config.early_stopping:
            patience = config.early_stopping
            callbacks.append(
                keras.callbacks.EarlyStopping("val_loss", patience=patience, restore_best_weights=True)
            )
        if config.tensorboard and rank == 0:
            callbacks.append(keras.callbacks.TensorBoard(str(folder / "tensorboard"), histogram_freq=1))
        model.fit(seen, epochs=config.epochs, shuffle=False, verbose=0, callbacks=callbacks)
        if rank != 0:
            return {}
        trained = build_head(head, training.features.shape[1:], classes)
        trained.set_weights(model.get_weights())
        # A fresh copy: the trained one would bring its optimizer into the file.
        assemble(frozen, trained).save(folder / "model.keras")
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _drop_differently(model: keras.Model, rank: int) -> None:
    """Give the dropout of each worker a seed of its own; the first worker keeps Keras'."""
    for variable in model.non_trainable_variables:
        if "seed_generator_state" in variable.path:
            seed, count = (int(value) for value in variable.numpy())
            variable.assign([(seed + rank * 0x9E3779B9) % 2**32, count])


def _compile(model: keras.Model, head: Head, config: FitConfig, workers: Workers) -> list[_RowMean]:
    """Compile with the head's loss and the user's optimizer, or the head's; return the metrics."""
    binary = model.output_shape[-1] == 1
    loss = head.loss or ("binary_crossentropy" if binary else "categorical_crossentropy")
    accuracy = keras.metrics.binary_accuracy if binary else keras.metrics.categorical_accuracy
    metrics = [_RowMean(keras.losses.get(loss), name="row_loss"), _RowMean(accuracy, name="row_accuracy")]
    optimizer = keras.optimizers.get(config.optimizer or head.optimizer)
    optimizer.learning_rate = config.learning_rate or head.learning_rate
    if workers.count > 1:
        optimizer = _averaging(optimizer, workers)
    model.compile(optimizer, loss, weighted_metrics=metrics, jit_compile=False)
    return metrics
