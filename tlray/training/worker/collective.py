"""Sums over all training workers, which make N workers train as one.

They sum gradients, the moments of batch normalisation, and the metrics of each epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlray.core import private


class AllReduce:
    """Sums tensors over all training workers; a single worker gets its tensors back."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._calls = 0
        self._collectives = private.start_collectives() if count > 1 else None

    def sum(self, tensor: Any) -> Any:
        """Return the sum over all workers, which can be differentiated.

        All workers must call this equally often, with tensors of the same shape, inside a traced function.
        """
        if self.count == 1:
            return tensor

        @tf.custom_gradient
        def total(tensor: Any) -> tuple[Any, Callable[[Any], Any]]:
            return self._reduce(tensor), self._reduce

        return total(tensor)

    def _reduce(self, tensor: Any) -> Any:
        self._calls += 1
        return private.sum_over_processes(tensor, self.count, self._calls)


class SyncedModel(keras.Model):
    """A model whose batch normalisation sees the rows of all workers, and no padding."""

    def share_statistics(self, all_reduce: AllReduce) -> None:
        """Compute the moments of each batch over all workers."""
        for layer in private.flatten_layers(self):
            if isinstance(layer, keras.layers.BatchNormalization):
                private.replace_moments(layer, self._moments(layer.axis, all_reduce))

    def _moments(self, axis: int, all_reduce: AllReduce) -> Callable[[Any, Any], tuple[Any, Any]]:
        def moments(inputs: Any, mask: Any) -> tuple[Any, Any]:
            axes = [other for other in range(len(inputs.shape)) if other != axis % len(inputs.shape)]
            is_real = tf.reshape(tf.sign(self.weights_of_rows), [-1, *([1] * (len(inputs.shape) - 1))])
            counted = tf.broadcast_to(is_real, tf.shape(inputs))
            count = all_reduce.sum(tf.reduce_sum(counted, axes))
            mean = all_reduce.sum(tf.reduce_sum(inputs * is_real, axes)) / count
            # Sum the squared distances from the mean: E[x²] - E[x]² would be too inexact in float32.
            return mean, all_reduce.sum(tf.reduce_sum(tf.square(inputs - mean) * is_real, axes)) / count

        return moments

    def train_step(self, data: Any) -> Any:
        self.weights_of_rows = data[2]
        return super().train_step(data)


def averaging(optimizer: keras.Optimizer, all_reduce: AllReduce) -> keras.Optimizer:
    """Return a copy of an optimizer that averages the gradients over the workers before each step."""
    kind: Any = type(optimizer)

    class Averaging(kind):
        def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
            # Use one collective operation for all gradients, because many small ones wait for each other.
            flat = all_reduce.sum(tf.concat([tf.reshape(grad, [-1]) for grad in grads], 0)) / all_reduce.count
            parts = tf.split(flat, [int(np.prod(grad.shape)) for grad in grads])
            averaged = [tf.reshape(part, grad.shape) for part, grad in zip(parts, grads, strict=True)]
            super().apply(averaged, trainable_variables)

    averaging: keras.Optimizer = Averaging.from_config(optimizer.get_config())
    return averaging


class RowMean(keras.metrics.MeanMetricWrapper):
    """The mean over real rows, each of which counts once, whatever its weight in the loss."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true, y_pred, keras.ops.sign(sample_weight))


class GlobalEpochs(keras.callbacks.Callback):
    """Replaces the logs of an epoch by the metrics over the rows of all workers.

    It must come before the callbacks that read the logs.
    """

    def __init__(
        self,
        all_reduce: AllReduce,
        metrics: list[RowMean],
        validation: tf.data.Dataset | None,
        checkpoint_seconds: float,
    ) -> None:
        super().__init__()
        self.metrics, self.validation = metrics, validation
        self.checkpoint_seconds, self.last_checkpoint = checkpoint_seconds, time.monotonic()
        self.is_due = False
        """Whether a checkpoint is due after the last epoch."""
        self._sum = tf.function(all_reduce.sum, autograph=False)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        means, self.is_due = self._means()
        logs.clear()
        logs.update(means)
        if self.validation is not None:
            self.model.evaluate(self.validation, verbose=0)
            logs.update({f"val_{name}": value for name, value in self._means()[0].items()})
        if self.is_due:
            self.last_checkpoint = time.monotonic()

    def _means(self) -> tuple[dict[str, float], bool]:
        """Return the metrics over all workers, and whether a checkpoint is due on any of them."""
        is_due = time.monotonic() - self.last_checkpoint >= self.checkpoint_seconds
        sums = [*(private.weighted_sum(metric) for metric in self.metrics), (is_due, 0)]
        *totals, (workers_due, _) = self._sum(tf.constant(np.array(sums, np.float64))).numpy()
        means = {
            metric.name.removeprefix("row_"): float(total / count)
            for metric, (total, count) in zip(self.metrics, totals, strict=True)
        }
        return means, bool(workers_due)
