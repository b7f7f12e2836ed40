"""What makes N training workers one: sums over all of them, of gradients and of batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlray.core import private


class AllReduce:
    """The sum of a tensor over all training workers; with one worker, the tensor."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._calls = 0
        self._collectives = private.start_collectives() if count > 1 else None

    def sum(self, tensor: Any) -> Any:
        """Sum; every worker must call it equally often, inside a traced function. It has a gradient."""
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
    """The trained part. Its batch normalisation sees the rows of all workers, and no padding."""

    def share_statistics(self, all_reduce: AllReduce) -> None:
        """Take the moments of a batch over all workers, as one worker would."""
        for layer in private.flatten_layers(self):
            if isinstance(layer, keras.layers.BatchNormalization):
                private.replace_moments(layer, self._moments(layer.axis, all_reduce))

    def _moments(self, axis: int, all_reduce: AllReduce) -> Callable[[Any, Any], tuple[Any, Any]]:
        def moments(inputs: Any, mask: Any) -> tuple[Any, Any]:
            axes = [other for other in range(len(inputs.shape)) if other != axis % len(inputs.shape)]
            real = tf.reshape(tf.sign(self.weights_of_rows), [-1, *([1] * (len(inputs.shape) - 1))])
            counted = tf.broadcast_to(real, tf.shape(inputs))
            count = all_reduce.sum(tf.reduce_sum(counted, axes))
            mean = all_reduce.sum(tf.reduce_sum(inputs * real, axes)) / count
            # In two steps: a difference of squares would lose what float32 has.
            return mean, all_reduce.sum(tf.reduce_sum(tf.square(inputs - mean) * real, axes)) / count

        return moments

    def train_step(self, data: Any) -> Any:
        self.weights_of_rows = data[2]
        return super().train_step(data)


def averaging(optimizer: keras.Optimizer, all_reduce: AllReduce) -> keras.Optimizer:
    """The same optimizer, made to average the gradients over the workers before each step."""
    kind: Any = type(optimizer)

    class Averaging(kind):
        def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
            # One collective for all: many small ones would wait for each other.
            flat = all_reduce.sum(tf.concat([tf.reshape(grad, [-1]) for grad in grads], 0)) / all_reduce.count
            parts = tf.split(flat, [int(np.prod(grad.shape)) for grad in grads])
            averaged = [tf.reshape(part, grad.shape) for part, grad in zip(parts, grads, strict=True)]
            super().apply(averaged, trainable_variables)

    averaging: keras.Optimizer = Averaging.from_config(optimizer.get_config())
    return averaging
