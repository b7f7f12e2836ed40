"""Metrics of an epoch over the rows of all workers."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlray.core import private
from tlray.training.worker.collective import AllReduce


class RowMean(keras.metrics.MeanMetricWrapper):
    """The mean over real rows: padding has weight 0, and the scale of the other weights is the loss's."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true, y_pred, keras.ops.sign(sample_weight))


class GlobalEpochs(keras.callbacks.Callback):
    """Makes the logs of an epoch those of all workers' rows.

    Must stand before the callbacks that read the logs.
    """

    def __init__(
        self,
        all_reduce: AllReduce,
        metrics: list[RowMean],
        validation: tf.data.Dataset | None,
        checkpoint_seconds: float,
    ) -> None:
        super().__init__()
        self.validation = validation
        self.metrics = metrics
        self.checkpoint_seconds, self.last = checkpoint_seconds, time.monotonic()
        self.due = False
        """Whether the epoch that ended shall have a checkpoint."""
        self._sum = tf.function(all_reduce.sum, autograph=False)

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
        state = np.array([*(private.weighted_sum(metric) for metric in self.metrics), (due, 0)], np.float64)
        *sums, (due_somewhere, _) = self._sum(tf.constant(state)).numpy()
        means = {
            metric.name.removeprefix("row_"): float(total / count)
            for metric, (total, count) in zip(self.metrics, sums, strict=True)
        }
        return means, bool(due_somewhere)
