"""The contract of heads."""

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
    Check,
    Subject,
    check_export,
    check_saving,
    explain,
    loads,
    require,
    require_equal,
)

if TYPE_CHECKING:
    import keras

_SHAPES = ((16,), (4, 4, 8))
"""Feature shapes. A head must accept at least one of them."""
_CLASSES = (2, 3)
_ROWS = 6


class HeadSubject(Subject[Head]):
    """The head under test, built for each feature shape that it accepts."""

    kind = "heads"

    @cached_property
    def models(self) -> dict[tuple[tuple[int, ...], int], keras.Model]:
        """The models with random weights, by feature shape and number of classes."""
        prepare_keras(gpu=False)
        models: dict[tuple[tuple[int, ...], int], keras.Model] = {}
        errors: list[UserError] = []
        for shape in _SHAPES:
            try:
                models |= {(shape, classes): self.build(shape, classes) for classes in _CLASSES}
            except UserError as error:
                errors.append(error)
        if not models:
            raise errors[-1]
        return models

    def build(self, shape: tuple[int, ...], classes: int) -> keras.Model:
        import keras

        head = build_head(self.plugin, shape, classes)
        return keras.Model(head.inputs[0], head.outputs[0])

    @cached_property
    def model(self) -> keras.Model:
        """The model for one of the feature shapes and the most classes."""
        return self.models[max(self.models)]


def declares(subject: HeadSubject) -> None:
    """`loss` and `optimizer` are names that Keras knows, and `learning_rate` is positive."""
    prepare_keras(gpu=False)
    import keras

    head = subject.plugin
    for name, known in (("loss", keras.losses.get), ("optimizer", keras.optimizers.get)):
        value = getattr(head, name)
        require(isinstance(value, str), f"{name} is {value!r}, expected a name that Keras knows")
        with explain(f"{name} is {value!r}, which Keras does not know"):
            known(value or None)
    require(
        isinstance(head.learning_rate, (int, float)) and head.learning_rate > 0,
        f"learning_rate is {head.learning_rate!r}, expected a positive number",
    )


def builds(subject: HeadSubject) -> None:
    """`build` works for two and for three classes, with the right output shape and Keras' own layers only."""
    _ = subject.models


def rebuilds(subject: HeadSubject) -> None:
    """Every call of `build` gives weights of the same shapes, so that a training can resume."""
    for (shape, classes), model in subject.models.items():
        first, second = (
            [array.shape for array in built.get_weights()] for built in (model, subject.build(shape, classes))
        )
        require(first == second, f"a second build({shape}, {classes}) gives weights of other shapes")


def gives_probabilities(subject: HeadSubject) -> None:
    """The output is between 0 and 1, its sum over the classes is 1, and it is the same every time."""
    for (shape, classes), model in subject.models.items():
        first, second = (np.asarray(model(_rows(model), training=False)) for _ in range(2))
        case = f"for features of shape {shape} and {classes} classes,"
        require(
            first.min() >= 0 and first.max() <= 1,
            f"{case} the output is not between 0 and 1: end the model with softmax or sigmoid",
        )
        total = first.sum(axis=1)
        require(
            first.shape[1] == 1 or np.abs(total - 1).max() < 1e-3,
            f"{case} the probabilities sum to {total.max():.3g}, expected 1: end the model with softmax",
        )
        message = f"{case} the output changes from call to call: do not call a layer with training=True"
        require_equal(second, first, message)


def learns(subject: HeadSubject) -> None:
    """A training step with its own loss and optimizer gives a finite loss and changes its weights."""
    import keras

    for (_, classes), model in subject.models.items():
        binary = model.output_shape[-1] == 1
        optimizer = keras.optimizers.get(subject.plugin.optimizer)
        optimizer.learning_rate = subject.plugin.learning_rate
        loss = subject.plugin.loss or ("binary_crossentropy" if binary else "categorical_crossentropy")
        labels = np.arange(_ROWS) % classes
        targets = labels[:, None].astype(np.float32) if binary else np.eye(classes, dtype=np.float32)[labels]
        trained = keras.models.clone_model(model)
        before = trained.get_weights()
        trained.compile(optimizer, loss, run_eagerly=True)
        value = trained.train_on_batch(_rows(model), targets)
        require(np.isfinite(value).all(), f"the loss of the first step is {value}, expected a finite number")
        same = all(map(np.array_equal, trained.get_weights(), before))
        require(not same, "a training step changes none of the weights")


def saves(subject: HeadSubject) -> None:
    """A saved head loads in Keras' safe mode, without the plugin, and gives the same output."""
    check_saving(subject.model, _rows(subject.model))


def exports(subject: HeadSubject) -> None:
    """Exported as a SavedModel, the head gives the same output."""
    check_export(subject.model, _rows(subject.model))


def works_in_actor(subject: HeadSubject) -> None:
    """In a Ray actor, which is a fresh process, the head gives the same output."""
    shape, classes = max(subject.models)
    model, rows = subject.model, _rows(subject.model)
    probabilities = subject.fresh_process.call(
        _probabilities, subject.plugin, shape, classes, model.get_weights(), rows
    )
    require_equal(probabilities, model(rows, training=False), "the output differs in a Ray actor")


def _probabilities(head: Head, shape: tuple[int, ...], classes: int, arrays: Arrays, rows: Any) -> Any:
    prepare_keras(gpu=False)
    model = build_head(head, shape, classes)
    model.set_weights(arrays)
    return np.asarray(model(rows, training=False))


def _rows(model: keras.Model) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).random((_ROWS, *model.input_shape[1:]), np.float32)


CHECKS = (
    *(Check(check, vital=True) for check in (loads, declares, builds)),
    *map(Check, (rebuilds, gives_probabilities, learns, saves, exports, works_in_actor)),
)
