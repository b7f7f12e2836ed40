"""Which epoch of a training is the best, and when it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tlray.core.config import TrainConfig

History = Sequence[Mapping[str, float]]
"""Of each epoch: epoch (from 1), loss, accuracy and, with validation rows, val_loss, val_accuracy."""


def best(history: History, monitor: str) -> int:
    """The place of the best epoch: the lowest loss or the highest accuracy, and the first of equals.

    As Keras' EarlyStopping with min_delta 0: an epoch must be better, not as good, to count.
    """
    sign = -1 if monitor.endswith("accuracy") else 1
    values = [sign * metrics[monitor] for metrics in history]
    return values.index(min((value for value in values if not math.isnan(value)), default=values[0]))


def stops(history: History, config: TrainConfig) -> bool:
    """Whether training ends with the last of these epochs because of `early_stopping`."""
    if config.early_stopping is None or not history:
        return False
    return len(history) - 1 - best(history, config.monitor) >= config.early_stopping


def kept(history: History, config: TrainConfig) -> int:
    """The place of the epoch whose weights the model has."""
    return best(history, config.monitor) if config.keeps_best else len(history) - 1
