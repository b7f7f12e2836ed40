"""Which epoch of a training is the best, and when the training stops early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tlray.core.config import TrainConfig

History = Sequence[Mapping[str, float]]
"""For each epoch: epoch (from 1), loss, accuracy and, with validation rows, val_loss and val_accuracy."""


def best(history: History, monitor: str) -> int:
    """Return the index of the first epoch with the lowest loss or the highest accuracy.

    This is Keras' EarlyStopping with min_delta 0: an epoch that is only as good does not count.
    """
    sign = -1 if monitor.endswith("accuracy") else 1
    values = [sign * metrics[monitor] for metrics in history]
    return values.index(min(values))


def stops(history: History, config: TrainConfig) -> bool:
    """Return whether `early_stopping` ends the training after these epochs."""
    if config.early_stopping is None or not history:
        return False
    return len(history) - 1 - best(history, config.monitor) >= config.early_stopping


def kept(history: History, config: TrainConfig) -> int:
    """Return the index of the epoch whose weights the model gets."""
    return best(history, config.monitor) if config.keeps_best else len(history) - 1
