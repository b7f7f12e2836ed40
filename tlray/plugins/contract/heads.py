"""What a head is checked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlray.core.errors import UserError
from tlray.core.runtime import prepare_keras
from tlray.models.assemble import build_head
from tlray.models.interfaces import Head
from tlray.models.layers import Arrays
from tlray.plugins.contract.check import (
    CLOSE,
    Check,
    Failed,
    Subject,
    difference,
    exported,
    line,
    loads,
    must,
    saved,
)

if TYPE_CHECKING:
    import keras

_SHAPES = ((16,), (4, 4, 8))
"""Of features: a head must take one of them, at least."""
_CLASSES = (2, 3)
_ROWS = 6


class HeadSubject(Subject[Head]):
    """A head, built for each shape of features that it takes."""

    kind = "heads"

    @cached_property
    def models(self) -> dict[tuple[tuple[int, ...], int], keras.Model]:
        """By shape of the features and number of classes; with random weights."""
        prepare_keras(gpu=False)
        found: dict[tuple[tuple[int, ...], int], keras.Model] = {}
        refused: Exception | None = None
        for shape in _SHAPES:
            try:
                found |= {(shape, classes): self.build(shape, classes) for classes in _CLASSES}
            except UserError as error:
                refused = error
        if not found:
            raise Failed(str(refused))
        return found

    def build(self, shape: tuple[int, ...], classes: int) -> keras.Model:
        import keras

        made = build_head(self.plugin, shape, classes)
        return keras.Model(made.inputs[0], made.outputs[0])

    @cached_property
    def model(self) -> keras.Model:
        """The one for most classes."""
        return self.models[max(self.models)]

    @cached_property
    def rows(self) -> npt.NDArray[np.float32]:
        """Features for it."""
        return _rows(self.model)


def declares(subject: HeadSubject) -> None:
    """Its loss and optimizer are Keras' own, by name, and its learning rate is positive."""
    prepare_keras(gpu=False)
    import keras

    head = subject.plugin
    for name, known in (("loss", keras.losses.get), ("optimizer", keras.optimizers.get)):
        value = getattr(head, name)
        try:
            must(isinstance(value, str), f"{name} is {value!r}, expected the name of one of Keras'")
            known(value or None)
        except ValueError as error:
            raise Failed(f"{name} is {value!r}, which Keras does not know: {line(error)}") from error
    must(
        isinstance(head.learning_rate, (int, float)) and head.learning_rate > 0,
        f"learning_rate is {head.learning_rate!r}, expected a positive number",
    )


def builds(subject: HeadSubject) -> None:
    """It builds, for two and for more classes, with the right output, of Keras' own layers."""
    _ = subject.models


def repeats(subject: HeadSubject) -> None:
    """Its weights have the same shapes every time, or training could not go on from its state."""
    for (shape, classes), model in subject.models.items():
        first, second = (
            [one.shape for one in made.get_weights()] for made in (model, subject.build(shape, classes))
        )
        must(first == second, f"built again for {shape} and {classes} classes its weights have other shapes")


def says_probabilities(subject: HeadSubject) -> None:
    """Its output are probabilities: from 0 to 1, of all classes together 1, and always the same."""
    for (shape, classes), model in subject.models.items():
        output, again = (np.asarray(model(_rows(model), training=False)) for _ in range(2))
        where = f"for features of shape {shape} and {classes} classes"
        must(
            output.min() >= 0 and output.max() <= 1,
            f"{where} its output is not between 0 and 1: end it with softmax or sigmoid",
        )
        total = output.sum(axis=1)
        must(
            output.shape[1] == 1 or np.abs(total - 1).max() < 1e-3,
            f"{where} its probabilities sum to {total.max():.3g}, expected 1: end it with softmax",
        )
        must(
            difference(output, again) < CLOSE,
            f"{where} it draws random numbers in inference too; do not call a layer with training=True",
        )


def learns(subject: HeadSubject) -> None:
    """A step of training with its own loss and optimizer gives a finite loss and moves its weights."""
    import keras

    for (_, classes), model in subject.models.items():
        binary = model.output_shape[-1] == 1
        optimizer = keras.optimizers.get(subject.plugin.optimizer)
        optimizer.learning_rate = subject.plugin.learning_rate
        loss = subject.plugin.loss or ("binary_crossentropy" if binary else "categorical_crossentropy")
        labels = np.arange(_ROWS) % classes
        targets = labels[:, None].astype(np.float32) if binary else np.eye(classes, dtype=np.float32)[labels]
        made = keras.models.clone_model(model)
        made.set_weights(model.get_weights())
        made.compile(optimizer, loss, run_eagerly=True)
        value = made.train_on_batch(_rows(model), targets)
        must(np.isfinite(value).all(), f"the loss of the first step is {value}")
        must(
            any(
                not np.array_equal(a, b) for a, b in zip(made.get_weights(), model.get_weights(), strict=True)
            ),
            "a step of training moves none of its weights",
        )


def saves(subject: HeadSubject) -> None:
    """It is saved, and loads in Keras' safe mode without the plugin, as it was."""
    saved(subject.model, subject.rows)


def exports(subject: HeadSubject) -> None:
    """It exports as a SavedModel that gives the same numbers."""
    exported(subject.model, subject.rows)


def works_elsewhere(subject: HeadSubject) -> None:
    """In a Ray actor, in a fresh process, it gives the same probabilities."""
    shape, classes = max(subject.models)
    found = subject.elsewhere.call(
        _probabilities, subject.plugin, shape, classes, subject.model.get_weights(), subject.rows
    )
    error = difference(found, subject.model(subject.rows, training=False))
    must(error < CLOSE, f"in an actor it gives other probabilities: relative error {error:.2g}")


def _probabilities(head: Head, shape: tuple[int, ...], classes: int, arrays: Arrays, rows: Any) -> Any:
    prepare_keras(gpu=False)
    model = build_head(head, shape, classes)
    model.set_weights(arrays)
    return np.asarray(model(rows, training=False))


def _rows(model: keras.Model) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).random((_ROWS, *model.input_shape[1:]), np.float32)


CHECKS = (
    Check(loads, vital=True),
    Check(declares, vital=True),
    Check(builds, vital=True),
    *map(Check, (repeats, says_probabilities, learns, saves, exports, works_elsewhere)),
)
