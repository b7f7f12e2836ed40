"""Fine-tuning end to end: real images, real weights, a local Ray."""

import json
import shutil
import tarfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import write_some_digits
from tests.support.numpy_network import load_classes
from tests.support.outputs import assert_same_head
from tlray.core.config import ExtractConfig, FinetuneConfig, NetworkConfig
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.models.frozen import FrozenPart
from tlray.training.finetune import _from_images, finetune
from tlray.training.fit import fit

SIZE = 32
TRAINING, VALIDATION, TEST = 101, 30, 30
"""No batch size divides the first."""
CUT = ExtractConfig(image_size=SIZE, precision="float32", cut="block4_pool")
TUNE = FinetuneConfig(
    from_="block5_conv1", epochs=2, batch_size=16, precision="float32", optimizer="sgd", learning_rate=1e-4
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Threes and fives, in splits."""
    counts = {"train": TRAINING, "validation": VALIDATION, "test": TEST}
    return write_some_digits(tmp_path_factory.mktemp("images"), counts, "35")


@pytest.fixture(scope="module")
def model(images, ray, tmp_path_factory) -> Path:
    """A head without dropout on the network's end."""
    folder = tmp_path_factory.mktemp("model")
    extract(images, folder / "features", CUT, cut=None)
    fit(folder / "features", folder / "head", head="linear", epochs=3)
    return folder / "head"


@pytest.fixture(scope="module")
def tuned(images, model, ray, tmp_path_factory) -> Path:
    """Two epochs from block5_conv1 on, on images without augmentation."""
    out = tmp_path_factory.mktemp("tuned") / "model"
    finetune(images, out, TUNE, model=model)
    return out


def backbone(model: Path) -> dict[str, list[np.ndarray]]:
    """The weights of every layer of the backbone, by its name."""
    import keras

    from tlray.models.layers import backbone_layers

    network = keras.saving.load_model(model / "model.keras")
    return {layer.name: layer.get_weights() for layer in backbone_layers(network) if layer.weights}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def test_fine_tuning_is_keras_end_to_end_with_the_lower_layers_frozen(images, model, tuned):
    """The same loss after each epoch, and nothing below the cut moves by a bit."""
    import keras
    from PIL import Image

    from tlray.training.worker.batches import GlobalBatches

    files = sorted(images.glob("train/*/*.png"))
    pictures = (Image.open(path).convert("RGB") for path in files)
    pixels = np.stack([picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for picture in pictures])
    targets = np.array([path.parent.name == "5" for path in files], np.float32)[:, None]
    whole = keras.saving.load_model(model / "model.keras")
    whole.trainable = True
    vgg16 = next(layer for layer in whole.get_layer("frozen").layers if layer.name == "vgg16")
    for layer in vgg16.layers:
        layer.trainable = layer.name.startswith("block5")
    image = keras.Input((SIZE, SIZE, 3))
    classifier = whole.get_layer("head").get_layer("classifier")
    plain = keras.Model(image, classifier(whole.get_layer("frozen")(image)))
    plain.compile(keras.optimizers.SGD(1e-4), "binary_crossentropy")
    batches = GlobalBatches(rows=TRAINING, batch_size=16, workers=1, rank=0, seed=0)
    losses = []
    for epoch in range(2):
        order = batches.order(epoch)
        epochs = plain.fit(pixels[order], targets[order], batch_size=16, shuffle=False, verbose=0)
        losses.append(epochs.history["loss"][0])
    assert [epoch["loss"] for epoch in manifest(tuned)["history"]] == pytest.approx(losses, abs=1e-3)
    before, after = backbone(model), backbone(tuned)
    assert set(before) == set(after)
    for name, arrays in after.items():
        frozen = all(map(np.array_equal, arrays, before[name]))
        assert frozen != name.startswith("block5"), name
        for array, expected in zip(arrays, vgg16.get_layer(name).get_weights(), strict=True):
            np.testing.assert_allclose(array, expected, atol=1e-5)


def test_the_manifest_tells_the_stages(model, tuned):
    first, second = manifest(tuned)["stages"]
    assert first == manifest(model)["stages"][0]
    assert (first["command"], first["trainable_tensors"], first["tensors"]) == ("fit", 2, 28)
    assert (second["command"], second["from"]) == ("finetune", "block5_conv1")
    assert (second["trainable_tensors"], second["tensors"]) == (8, 28)
    assert second["history"] == manifest(tuned)["history"]
    assert len(second["history"]) == 2
    assert manifest(tuned)["provenance"]["cut"] == "block4_pool"
    assert sorted(path.name for path in tuned.iterdir()) == ["history.csv", "manifest.json", "model.keras"]


def test_a_feature_set_at_the_cut_gives_the_same(images, model, tuned, ray, tmp_path):
    features = tmp_path / "features"
    extract(images, features, CUT)
    assert finetune(features, tmp_path / "model", TUNE, model=model).rows == TRAINING
    assert_same_head(tmp_path / "model", tuned, 1e-5)
    assert evaluate(tuned, features, out=tmp_path / "report").evaluated == TEST
    assert (tmp_path / "report" / "index.html").exists()
    with pytest.raises(UserError, match=r"cut block4_pool, not block3_pool.*--cut block3_pool"):
        finetune(features, tmp_path / "x", TUNE, from_="block4_conv1", model=model)
    assert not (tmp_path / "x").exists()


@pytest.mark.distributed
def test_streamed_views_train_two_workers_as_cached_ones_train_one(images, model, tuned, ray, tmp_path):
    """Two cached views, taken in turn, are those of the first two epochs."""
    config, train = replace(TUNE, augment="rotation=30,zoom=0.2,flip"), images / "train"
    finetune(train, tmp_path / "streamed", config, workers=2, model=model)
    finetune(train, tmp_path / "cached", config, views=2, model=model)
    assert_same_head(tmp_path / "streamed", tmp_path / "cached", 1e-5)
    folders = (tuned, tmp_path / "streamed", tmp_path / "cached")
    plain, streamed, cached = (manifest(folder)["history"] for folder in folders)
    assert streamed == [pytest.approx(epoch, rel=1e-4) for epoch in cached]
    assert streamed[0]["loss"] != pytest.approx(plain[0]["loss"], rel=1e-3)


def test_the_stream_gives_the_views_of_its_own_rows(images, ray, tmp_path):
    """Out of a tar file, against each view decoded, augmented and computed here."""
    import ray as ray_module

    from tlray.images import decoder
    from tlray.images.augment import Augmentation, Views
    from tlray.training.view_stream import ViewSource, ViewStream
    from tlray.training.worker.batches import GlobalBatches

    frozen = FrozenPart.decide(NetworkConfig(backbone="pixels", image_size=SIZE))
    with tarfile.open(tmp_path / "train.tar", "w") as file:
        file.add(images / "train", "")
    listed = list(Images.open(tmp_path / "train.tar"))
    paths = [row.path for row in listed]
    places = {name: [getattr(row, name) for row in listed] for name in ("path", "offset", "modified")}
    views, root = Views(Augmentation.parse("strong"), 7), Folder.open(tmp_path)
    read_image = Reader(root)
    work = {
        "views": views,
        "image_size": SIZE,
        "load_network": frozen.loader(),
        "limits": (10_000, 60),
    }
    source = ViewSource(root=root, images=ray_module.put(pa.table(places)), **work)
    for rank in (0, 1):
        batches = GlobalBatches(rows=len(paths), batch_size=24, workers=2, rank=rank, seed=3)
        stream = ViewStream(source, batches, range(1, 3))
        for epoch, step in product((1, 2), range(batches.steps)):
            rows, weights = batches.slice(batches.order(epoch), step)
            taken = stream.take(epoch, step, rows)
            assert len(taken) == 12
            for row, weight, features in zip(rows, weights, taken, strict=True):
                plain = decoder.decode(read_image(paths[row]), SIZE)
                expected = views.view(plain, paths[row], epoch) / 255 if weight else np.zeros_like(plain)
                np.testing.assert_allclose(features, expected.ravel(), atol=1e-6)


@pytest.mark.distributed
def test_from_scratch_with_a_split_that_evaluation_and_prediction_know(images, ray, tmp_path, monkeypatch):
    """Batch normalisation, dropout, augmentation, two workers, a bad image, all from the input on."""
    what = {"backbone": "small-vggnet", "image_size": 16, "from_": "input", "head": "dense-512"}
    training = {"augment": "light", "epochs": 2, "batch_size": 20, "workers": 2}
    config = FinetuneConfig(**what, **training, split=0.75, seed=42, validation="test")
    folder, model = tmp_path / "images", tmp_path / "model"
    for path in images.glob("train/*/*.png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).symlink_to(path)
    (folder / "3" / "bad.png").write_bytes(b"no image")
    with pytest.raises(JobError, match=r"1 of 102 images are bad, more than --max-bad-fraction 0 allows"):
        finetune(folder, model, config, max_bad_fraction=0.0)
    # The same job, which goes on with what was done.
    result = finetune(folder, model, config)
    assert (result.rows + result.validation_rows, result.errors) == (TRAINING, 1)
    assert pq.read_table(model / "errors")["path"].to_pylist() == ["3/bad.png"]
    assert result.trainable_tensors == result.tensors
    scores = evaluate(model, folder, precision="float32")
    assert (scores.split, scores.evaluated) == ("test", result.validation_rows)
    assert scores.accuracy == pytest.approx(result.metrics["val_accuracy"], abs=1e-6)
    assert scores.loss == pytest.approx(result.metrics["val_loss"], rel=1e-3)
    monkeypatch.setattr("tlray.evaluation.model_inference.loader", lambda *given: load_classes)
    assert predict(model, folder, tmp_path / "p.csv", split="test").rows == result.validation_rows
    with pytest.raises(UserError, match="no such split: it has test, train"):
        predict(model, folder, tmp_path / "q.csv", split="validation")

    # What it has held out is not trained on later either.
    out = Folder.open(tmp_path / "new")
    further = _from_images(folder, out, FinetuneConfig(seed=1), model, print, print)
    account = further.facts["account"]
    assert (account.images, list(account.splits)) == (TRAINING + 1, ["test", "train"])
    assert further.facts == {
        **{"images": str(folder), "split": 0.75, "split_seed": 42},
        "account": account,
    }
    with pytest.raises(UserError, match=r"with --split 0.75 --seed 42, not with --split 0.75 --seed 1"):
        finetune(folder, out.uri, split=0.75, seed=1, model=model)


def test_from_a_layer_after_the_head_is_refused(images, model, tmp_path):
    """A head may follow on a layer in the middle; what comes after is not in the model."""
    early = shutil.copytree(model, tmp_path / "early")
    (early / "manifest.json").write_text(json.dumps({**manifest(model), "end": "block4_pool"}))
    with pytest.raises(UserError, match="--from block5_conv1: the network ends at block4_pool"):
        finetune(images, tmp_path / "out", TUNE, model=early)


def test_a_network_from_scratch_begins_with_the_weights_of_its_seed():
    config = NetworkConfig(backbone="small-vggnet")
    first, again, other = (FrozenPart.decide(config, seed).arrays[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_tuned_model_is_tuned_again_and_its_backbone_is_weights(images, tuned, ray, tmp_path):
    """Frozen above what was trained before, the frozen part is no longer ImageNet's."""
    again, out = tmp_path / "again", tmp_path / "features"
    extract(images, out, CUT, cut="block5_conv2", weights=str(tuned))
    finetune(out, again, TUNE, from_="block5_conv3", epochs=1, model=tuned)
    before, after = backbone(tuned), backbone(again)
    moved = {name for name in before if not all(map(np.array_equal, before[name], after[name]))}
    assert moved == {"block5_conv3"}
    first, made, provenance = (manifest(folder)["provenance"] for folder in (tuned, out, again))
    assert provenance["weights"] == str(tuned)
    assert first["weights_sha256"] != made["weights_sha256"] == provenance["weights_sha256"]
    assert evaluate(again, out, out=tmp_path / "r").evaluated == TEST


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_": "block5_con1"}, "unknown layer of vgg16 .* did you mean block5_conv1"),
        ({"backbone": "pixels"}, r"--backbone pixels: .* was made with vgg16"),
        ({"image_size": 64}, "--image-size 64: .* was made with 32"),
        ({"classes": "5,3"}, "the model's order is 3,5"),
        ({"split": 0.5}, "have splits already"),
        ({"validation": "held-out"}, "no such split"),
        ({"workers": 500}, "only 101 training rows"),
    ],
)
def test_bad_calls_say_what_is_wrong_and_write_nothing(options, message, images, model, ray, tmp_path):
    with pytest.raises(UserError, match=message):
        finetune(images, tmp_path / "out", TUNE, **options, model=model)
    assert not (tmp_path / "out").exists()


def test_bad_data_is_refused(images, model, ray, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    for name, message in (("3", "one class"), ("new", "does not know")):
        shutil.copytree(images / "test" / "3", folder / name)
        with pytest.raises(UserError, match=message):
            finetune(folder, out, TUNE, model=model)
    with pytest.raises(UserError, match="--model is missing"):
        finetune(images, out, TUNE)
    assert not out.exists()
