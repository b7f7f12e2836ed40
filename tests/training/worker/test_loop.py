"""What a head plugin may be, and the training loop of one worker without Ray."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tlray.core.config import FitConfig, NetworkConfig
from tlray.core.errors import DivergenceError, UserError
from tlray.models import registry
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Head
from tlray.training.worker.batches import GlobalBatches

pytestmark = pytest.mark.slow


def test_a_head_that_does_not_fit_or_has_a_layer_of_its_own_is_refused(keras):
    from tlray.models.assemble import build_head

    class Own(keras.layers.Dense):
        pass

    class Made(Head):
        name = "made"

        def __init__(self, layer):
            self.layer = layer

        def build(self, feature_shape, classes):
            return keras.Sequential([keras.Input(feature_shape), self.layer])

    dense = keras.layers.Dense(3)
    assert build_head(Made(dense), (4,), 3).output_shape == (None, 3)
    for layer, shape, classes, message in (
        (dense, (4,), 2, r"does not fit 2 classes.*\(None, 3\)"),
        (dense, (4,), 4, r"does not fit 4 classes.*\(None, 3\)"),
        (keras.layers.Dense(3), (2, 2, 4), 3, "does not fit 3 classes"),
        (keras.layers.Conv2D(3, 3), (8,), 3, r"'made' does not fit features of shape \(8,\)"),
        (Own(3), (8,), 3, r"its own layer class .*\.Own"),
    ):
        with pytest.raises(UserError, match=message):
            build_head(Made(layer), shape, classes)


def test_each_worker_drops_other_units_and_the_first_those_of_keras(keras):
    from tlray.training.worker.loop import _drop_differently

    def states(rank: int) -> list[list[int]]:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)])
        if rank >= 0:
            _drop_differently(model, rank)
        return [variable.numpy().tolist() for variable in model.non_trainable_variables]

    plain, first, second = states(-1), states(0), states(1)
    assert plain == first
    assert len({tuple(state) for state in [*first, *second]}) == 4


ROWS, HELD_OUT = 50, 10
CONFIG = FitConfig(epochs=3, batch_size=16, optimizer="sgd", learning_rate=0.01, head="linear")
RNG = np.random.default_rng(0)
FEATURES = RNG.random((ROWS, 507), np.float32)
"""As many features as 13 by 13 pixels have."""
CLASSES = (FEATURES[:, 0] > 0.5).astype(np.int64)


class OnlyWorker:
    """Ray Train's part: keeps checkpoints and reports, and can end as if it was killed."""

    rank, count, scratch = 0, 1, None

    def __init__(self, folder, ends_after=None):
        self.folder, self.ends_after, self.saved, self.last = folder, ends_after, 0, None
        self.reports = []

    def report(self, metrics):
        self.reports.append(metrics)

    @contextmanager
    def latest(self):
        yield self.last

    def save(self, folder):
        self.saved += 1
        copy = self.folder / str(self.saved)
        shutil.copytree(folder, copy)
        self.last = str(copy)
        if self.saved == self.ends_after:
            raise KeyboardInterrupt


@pytest.fixture
def train(keras, tmp_path, monkeypatch):
    """Train a head on FEATURES in this process; returns what the worker brings back, and the reports."""
    from tlray.training.worker import loop
    from tlray.training.worker.task import Task

    monkeypatch.chdir(tmp_path)
    frozen = FrozenPart.decide(NetworkConfig(backbone="pixels", image_size=13))

    def run(config=CONFIG, worker=None, **options):
        worker = worker or OnlyWorker(tmp_path / str(len(list(tmp_path.iterdir()))))
        worker.reports = []
        head = registry.head(config.head)
        network = {"frozen": frozen, "end": "pixels", "head_weights": None, "head": head}
        validation = (FEATURES[:HELD_OUT], CLASSES[:HELD_OUT])
        rows = {"classes": 2, "features": FEATURES, "targets": CLASSES, "validation": validation, **options}
        task = Task(config=config, learning_rate=config.learning_rate, **network, **rows)
        return loop.train(task, worker), worker.reports

    return run


def head_weights(trained):
    from tlray.models.model import load

    return load(trained.files["model.keras"]).get_layer("head").get_weights()


def plain(keras, optimizer, weights=None):
    """The same with nothing but Keras."""
    keras.utils.set_random_seed(CONFIG.seed)
    model = registry.head("linear").build((507,), 2)
    model.compile(optimizer, "binary_crossentropy")
    batches = GlobalBatches(rows=ROWS, batch_size=16, workers=1, rank=0, seed=CONFIG.seed)
    for order in map(batches.order, range(3)):
        weight = None if weights is None else weights[CLASSES[order]]
        options = {"sample_weight": weight, "batch_size": 16, "shuffle": False, "verbose": 0}
        model.fit(FEATURES[order], CLASSES[order], **options)
    return model.get_weights()


def same(first, second, atol=1e-6):
    for array, other in zip(first, second, strict=True):
        np.testing.assert_allclose(array, other, atol=atol, rtol=0)


def test_the_learning_rate_falls_as_published(keras, train):
    """SGD with decay is the old Keras' learning rate / (1 + decay * steps)."""
    schedules = keras.optimizers.schedules
    rates = {"0.5": schedules.InverseTimeDecay(0.01, 1, 0.5), "cosine": schedules.CosineDecay(0.01, 3 * 4)}
    for decay, rate in {**rates, None: 0.01}.items():
        trained, _ = train(replace(CONFIG, decay=decay))
        same(head_weights(trained), plain(keras, keras.optimizers.SGD(rate)))


def test_class_weights_weigh_the_loss_and_not_the_metrics(keras, train):
    weights = (ROWS / (2 * np.bincount(CLASSES))).astype(np.float32)
    assert weights[0] != weights[1]
    trained, reports = train(replace(CONFIG, class_weights=True))
    same(head_weights(trained), plain(keras, keras.optimizers.SGD(0.01), weights=weights))
    unweighted = train()[1]
    assert trained.history == reports
    assert reports[-1]["loss"] != unweighted[-1]["loss"]
    assert 0 <= reports[-1]["accuracy"] <= 1
    assert reports[-1]["accuracy"] * ROWS == pytest.approx(round(reports[-1]["accuracy"] * ROWS))


@pytest.mark.parametrize("after", [1, 2, 3])
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(keras, train, tmp_path, after):
    """With dropout, Adam's moments and a schedule, to the last bit; also after the last epoch."""
    config = replace(CONFIG, head="dense-256", optimizer="adam", decay="cosine", keep="best")
    undisturbed, _ = train(config)
    broken = OnlyWorker(tmp_path / "broken", ends_after=after)
    with pytest.raises(KeyboardInterrupt):
        train(config, broken)
    again, reports = train(config, broken)
    assert [metrics["epoch"] for metrics in reports] == list(range(after + 1, 4))
    assert again.history == undisturbed.history
    same(head_weights(again), head_weights(undisturbed), atol=0)


def test_a_checkpoint_holds_no_pickle(keras, train, tmp_path):
    worker = OnlyWorker(tmp_path / "kept")
    train(replace(CONFIG, keep="best"), worker)
    files = {path.name for path in (tmp_path / "kept" / "1").iterdir()}
    assert files == {"state.npz", "history.json", "best.npz"}
    with np.load(tmp_path / "kept" / "1" / "state.npz", allow_pickle=False) as state:
        assert all(state[name].dtype != object for name in state.files)


def test_early_stopping_stops_and_keeps_what_was_asked_for(keras, train):
    config = replace(CONFIG, epochs=40, learning_rate=2.0, early_stopping=2, monitor="val_accuracy")
    best, _ = train(config)
    values = [metrics["val_accuracy"] for metrics in best.history]
    assert len(values) < 40
    assert int(np.argmax(values)) == len(values) - 3
    shorter, _ = train(replace(config, epochs=len(values) - 2, early_stopping=None))
    same(head_weights(best), head_weights(shorter), 0)
    last, _ = train(replace(config, keep="last"))
    assert last.history == best.history
    longer, _ = train(replace(config, epochs=len(values), early_stopping=None))
    same(head_weights(last), head_weights(longer), 0)
    assert not all(map(np.array_equal, head_weights(last), head_weights(best)))


def test_every_epoch_takes_its_view(keras, train, monkeypatch):
    from tlray.training.worker.dataset import InMemory

    taken = set()

    def take(self, epoch, step, rows, take=InMemory.take):
        features = take(self, epoch, step, rows)
        taken.add((epoch, features.mean()))
        return features

    monkeypatch.setattr(InMemory, "take", take)
    views = np.stack([np.zeros_like(FEATURES), np.ones_like(FEATURES)], axis=1)
    train(features=views, has_views=True)
    # The validation rows, whose mean is neither, are taken as of epoch 0.
    assert {(epoch, mean) for epoch, mean in taken if mean in (0, 1)} == {(0, 0), (1, 1), (2, 0)}


def test_counts_and_trained_part_are_those_of_the_cut(keras):
    """30 tensors in all, 4 with the base frozen, 10 with block 5, as published."""
    from tlray.models.assemble import assemble, trained_part

    counts = {}
    for cut in ("block5_pool", "block4_pool", "input"):
        frozen = FrozenPart.decide(NetworkConfig(cut=cut, image_size=32, weights="none"))
        trained = trained_part(frozen, "block5_pool", registry.head("dense-256"), 2)
        counts[cut] = len(trained.trainable_variables)
        whole = assemble(frozen, trained)
        assert len(whole.trainable_variables) == counts[cut]
    assert counts == {"block5_pool": 4, "block4_pool": 10, "input": 30}


def test_batch_statistics_of_padded_rows_do_not_count(keras):
    """The moments over two workers' padded slices are those of the whole batch, and so are gradients."""
    import tensorflow as tf

    from tlray.training.worker.collective import SyncedModel

    rows = tf.constant(np.random.default_rng(1).normal(3, 2, (5, 4)), tf.float32)

    class Two:
        """Adds what the other worker would add, which is known here."""

        count = 2

        def __init__(self, other):
            self.other, self.calls = other, 0

        def sum(self, tensor):
            self.calls += 1
            return tensor + self.other[self.calls - 1]

    layer = keras.layers.BatchNormalization(momentum=0)  # Its moving statistics are those of the batch.
    inputs = keras.Input((4,))
    network = SyncedModel(inputs, layer(inputs), name="trained")
    theirs, mine = rows[3:], tf.concat([rows[:3], tf.fill((2, 4), 99.0)], 0)
    mean = tf.reduce_mean(rows, 0)
    others = [tf.fill((4,), 2.0), tf.reduce_sum(theirs, 0), tf.reduce_sum(tf.square(theirs - mean), 0)]
    network.share_statistics(Two(others))
    network.weights_of_rows = tf.constant([1.0, 1, 1, 0, 0])
    network(mine, training=True)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, tf.math.reduce_variance(rows, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"learning_rate": 1e38}, {}, "the loss is not finite after epoch 1"),
        ({"learning_rate": 1e38, "early_stopping": 2}, {}, "the loss is not finite after epoch 1"),
        # With one step in an epoch, its loss is that of the weights before the step.
        (
            {"learning_rate": 1e39, "batch_size": ROWS},
            {"validation": None},
            "a weight is not finite after epoch 1",
        ),
        (
            {},
            {"validation": (np.full((1, 507), np.inf, np.float32), CLASSES[:1])},
            "the val_loss is not finite",
        ),
    ],
)
def test_a_training_that_diverges_ends_and_keeps_nothing(keras, train, tmp_path, changes, options, message):
    worker = OnlyWorker(tmp_path / "diverged")
    with pytest.raises(DivergenceError, match=f"diverged: {message}.* try a smaller --learning-rate"):
        train(replace(CONFIG, **changes), worker, **options)
    assert len(worker.reports) == 1
    assert worker.last is None


def test_a_checkpoint_that_is_not_finite_is_not_continued(keras, train, tmp_path):
    worker = OnlyWorker(tmp_path / "kept", ends_after=1)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, worker)
    with np.load(Path(worker.last, "state.npz")) as state:
        arrays = [state[name] for name in state.files]
    arrays[0][0, 0] = np.nan
    np.savez(Path(worker.last, "state.npz"), *arrays)
    with pytest.raises(DivergenceError, match="a weight is not finite after epoch 1"):
        train(CONFIG, worker)
