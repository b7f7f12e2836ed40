"""What a head plugin may be; the training itself is in test_main_job.py."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tlray.config import FitConfig
from tlray.errors import UserError
from tlray.head import Head
from tlray.runtime import prepare_keras

pytestmark = pytest.mark.slow


def head(build) -> Head:
    return type(
        "Made", (Head,), {"name": "made", "build": lambda self, shape, classes: build(shape, classes)}
    )()


@pytest.fixture
def keras():
    prepare_keras()
    import keras

    return keras


def test_a_head_of_the_wrong_width_is_refused(keras):
    from tlray.worker import build_head

    made = head(lambda shape, _: keras.Sequential([keras.Input(shape), keras.layers.Dense(3)]))
    assert build_head(made, (4,), 3).output_shape == (None, 3)
    for classes in (2, 4):
        with pytest.raises(UserError, match=rf"does not fit {classes} classes.*\(None, 3\)"):
            build_head(made, (4,), classes)
    with pytest.raises(UserError, match="does not fit 3 classes"):
        build_head(made, (2, 2, 4), 3)


def test_a_head_that_does_not_fit_the_features_is_refused(keras):
    from tlray.worker import build_head

    made = head(lambda shape, _: keras.Sequential([keras.Input(shape), keras.layers.Conv2D(3, 3)]))
    with pytest.raises(UserError, match=r"'made' does not fit features of shape \(8,\)"):
        build_head(made, (8,), 3)


def test_a_layer_of_its_own_is_refused(keras):
    from tlray.worker import build_head

    class Own(keras.layers.Dense):
        pass

    made = head(lambda shape, classes: keras.Sequential([keras.Input(shape), Own(classes)]))
    with pytest.raises(UserError, match="a layer of its own, Own"):
        build_head(made, (8,), 3)


def test_batch_statistics_are_refused_with_several_workers(keras):
    from tlray import worker

    layers = keras.layers
    made = head(
        lambda shape, classes: keras.Sequential(
            [keras.Input(shape), layers.BatchNormalization(), layers.Dense(classes, "softmax")]
        )
    )
    examples = worker.Examples(np.zeros((4, 8), np.float32), np.arange(4) % 3)
    with pytest.raises(UserError, match="--workers 1"):
        worker.train(
            config=FitConfig(workers=2),
            head=made,
            classes=3,
            training=examples,
            validation=None,
            frozen=None,
            rank=0,
            workers=SimpleNamespace(count=2),
            report=print,
        )


def test_each_worker_drops_other_units_and_the_first_those_of_keras(keras):
    from tlray.worker import _drop_differently

    def states(rank: int) -> list[list[int]]:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)])
        if rank >= 0:
            _drop_differently(model, rank)
        return [variable.numpy().tolist() for variable in model.non_trainable_variables]

    plain, first, second = states(-1), states(0), states(1)
    assert plain == first
    assert len({tuple(state) for state in [*first, *second]}) == 4
