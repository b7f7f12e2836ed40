"""The rows of a worker's batches, as a dataset for Keras' fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tlray.training.worker.batches import GlobalBatches

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


@dataclass(frozen=True)
class Slices:
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
