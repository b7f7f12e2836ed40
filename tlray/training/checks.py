"""Checks of the settings of a training, and the CPUs that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from tlray.core.config import TrainConfig
from tlray.core.errors import UserError, unknown
from tlray.training.view_stream import STREAM_CPUS

OPTIMIZERS = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw"),
    *("ftrl", "lion", "muon", "nadam", "rmsprop", "sgd"),
)
"""Keras' optimizers, by the names that `keras.optimizers.get` takes."""


def check(config: TrainConfig, classes: Sequence[str], where: str) -> list[str]:
    """Check the settings, and return the classes in the order of the model's output.

    Args:
        config: the settings of the training.
        classes: the classes of the images or features, in alphabetical order.
        where: the URI of the images or features, for messages.

    Raises:
        UserError: an optimizer, package or class does not exist, or there are fewer than two classes.
    """
    if config.optimizer is not None and config.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", config.optimizer, OPTIMIZERS)
    if config.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard: the package tensorboard is not installed: pip install 'tlray[tensorboard]'"
        )
    if len(classes) < 2:
        content = f"one class ({classes[0]})" if classes else "no labels"
        raise UserError(
            f"{where} has {content}, but a head needs at least two classes: "
            "give images with one folder for each class"
        )
    if config.classes is None:
        return list(classes)
    order = [name.strip() for name in config.classes.split(",")]
    if sorted(order) != sorted(classes):
        raise UserError(
            f"--classes {config.classes}: expected each class of {where} once: {','.join(classes)}"
        )
    return order


def cpus(config: TrainConfig, streaming: bool) -> int:
    """Return the CPUs that a local Ray needs for a training and the passes over images before it."""
    return max(2, int(config.workers * (1 + STREAM_CPUS if streaming else 1) + 1))
