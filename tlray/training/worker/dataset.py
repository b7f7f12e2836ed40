"""The rows of a worker's batches, as a dataset for Keras' fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.training.view_stream import ViewStream
from tlray.training.worker.batches import GlobalBatches

_STEPS_AHEAD = 4


@dataclass(frozen=True)
class InMemory:
    """Features that are the same in every epoch, or K views of every row, which the epochs take in turn."""

    features: npt.NDArray[Any]
    """(rows, *shape), or (rows, K, *shape). The array may be in Ray's object store, which is read-only."""
    has_views: bool = False
    waited = 0.0

    def take(self, epoch: int, step: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        index = (rows, epoch % self.features.shape[1]) if self.has_views else rows
        return np.asarray(self.features[index])


Features = InMemory | ViewStream
"""The inputs of the trained part."""


def dataset(
    features: Features,
    targets: npt.NDArray[np.int64],
    batches: GlobalBatches,
    model: keras.Model,
    epochs: range,
    class_weights: npt.NDArray[np.float32] | None = None,
) -> tf.data.Dataset:
    """Return the features, encoded targets and weights of each step of this worker in these epochs.

    A thread prepares them ahead, so that no step waits for them.
    """
    outputs = model.output_shape[-1]

    def steps() -> Iterator[tuple[Any, Any, Any]]:
        for epoch in epochs:
            order = batches.order(epoch)
            for step in range(batches.steps):
                rows, weights = batches.slice(order, step)
                classes = targets[rows]
                encoded = classes[:, None] if outputs == 1 else np.eye(outputs, dtype=np.float32)[classes]
                if class_weights is not None:
                    weights = weights * class_weights[classes]
                yield features.take(epoch, step, rows), encoded, weights

    signature = (
        tf.TensorSpec((None, *model.input_shape[1:]), tf.float32),
        tf.TensorSpec((None, outputs), tf.float32),
        tf.TensorSpec((None,), tf.float32),
    )
    options = tf.data.Options()
    options.autotune.enabled = False  # It has nothing to tune here, and its thread delays the end.
    counted = tf.data.experimental.assert_cardinality(len(epochs) * batches.steps)
    generated = tf.data.Dataset.from_generator(steps, output_signature=signature)
    return generated.apply(counted).prefetch(_STEPS_AHEAD).with_options(options)
