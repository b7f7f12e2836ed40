"""Fine-tuning end to end: real images, real weights, a local Ray."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.numpy_network import load_classes
from tests.support.outputs import head_weights
from tlray.core.config import (
    EvaluateConfig,
    ExtractConfig,
    FinetuneConfig,
    FitConfig,
    NetworkConfig,
    PredictConfig,
)
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.models.frozen import FrozenPart
from tlray.recipes.demo import write_digits
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
    folder = tmp_path_factory.mktemp("images")
    write_digits(str(folder))
    for split, count in {"train": TRAINING, "validation": VALIDATION, "test": TEST}.items():
        files = sorted(folder.glob(f"{split}/[35]/*.png"), key=lambda path: path.name)
        kept = set(files[:count])
        for path in folder.glob(f"{split}/*/*.png"):
            if path not in kept:
                path.unlink()
        for path in folder.glob(f"{split}/*"):
            if not any(path.iterdir()):
                path.rmdir()
    return folder


@pytest.fixture(scope="module")
def model(images, ray, tmp_path_factory) -> Path:
    """A head without dropout on the network's end."""
    folder = tmp_path_factory.mktemp("model")
    extract(str(images), str(folder / "features"), replace(CUT, cut=None))
    fit(str(folder / "features"), str(folder / "head"), FitConfig(head="linear", epochs=3))
    return folder / "head"


@pytest.fixture(scope="module")
def tuned(images, model, ray, tmp_path_factory) -> Path:
    """Two epochs from block5_conv1 on, on images without augmentation."""
    out = tmp_path_factory.mktemp("tuned") / "model"
    finetune(str(images), str(out), TUNE, model=str(model))
    return out


def network(model: Path):
    import keras

    return keras.saving.load_model(model / "model.keras")


def backbone(model: Path) -> dict[str, list[np.ndarray]]:
    """The weights of every layer of the backbone, by its name."""
    from tlray.models.layers import backbone_layers

    return {layer.name: layer.get_weights() for layer in backbone_layers(network(model)) if layer.weights}


def close(first: Path, second: Path, atol: float) -> None:
    for one, two in zip(head_weights(first), head_weights(second), strict=True):
        np.testing.assert_allclose(one, two, atol=atol)


def test_fine_tuning_is_keras_end_to_end_with_the_lower_layers_frozen(images, model, tuned):
    """The same loss after each epoch, and nothing below the cut moves by a bit."""
    import keras
    from PIL import Image

    from tlray.training.worker.batches import GlobalBatches

    files = sorted(images.glob("train/*/*.png"))
    pixels = np.stack(
        [
            np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            for path in files
        ]
    )
    targets = np.array([path.parent.name == "5" for path in files], np.float32)[:, None]
    whole = network(model)
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
        found = plain.fit(pixels[order], targets[order], batch_size=16, shuffle=False, verbose=0)
        losses.append(found.history["loss"][0])
    manifest = json.loads((tuned / "manifest.json").read_text())
    assert [epoch["loss"] for epoch in manifest["history"]] == pytest.approx(losses, abs=1e-3)
    before, after = backbone(model), backbone(tuned)
    assert set(before) == set(after)
    for name, arrays in before.items():
        moved = any(not np.array_equal(*pair) for pair in zip(arrays, after[name], strict=True))
        assert moved == name.startswith("block5"), name
    for name, arrays in after.items():
        expected = vgg16.get_layer(name).get_weights()
        for one, two in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_manifest_tells_the_stages(model, tuned):
    manifest = json.loads((tuned / "manifest.json").read_text())
    first, second = manifest["stages"]
    assert first == json.loads((model / "manifest.json").read_text())["stages"][0]
    assert (first["command"], first["trainable_tensors"], first["tensors"]) == ("fit", 2, 28)
    assert (second["command"], second["from"]) == ("finetune", "block5_conv1")
    assert (second["trainable_tensors"], second["tensors"]) == (8, 28)
    assert second["history"] == manifest["history"]
    assert len(second["history"]) == 2
    assert manifest["provenance"]["cut"] == "block4_pool"
    assert sorted(path.name for path in tuned.iterdir()) == ["history.csv", "manifest.json", "model.keras"]


def test_a_feature_set_at_the_cut_gives_the_same(images, model, tuned, ray, tmp_path):
    extract(str(images), str(tmp_path / "features"), CUT)
    found = finetune(str(tmp_path / "features"), str(tmp_path / "model"), TUNE, model=str(model))
    close(tmp_path / "model", tuned, 1e-5)
    assert found.rows == TRAINING
    scores = evaluate(str(tuned), str(tmp_path / "features"), EvaluateConfig(), out=str(tmp_path / "report"))
    assert scores.evaluated == TEST
    assert (tmp_path / "report" / "index.html").exists()
    with pytest.raises(UserError, match=r"--augment flip needs images, but .* is a feature set"):
        finetune(
            str(tmp_path / "features"), str(tmp_path / "x"), replace(TUNE, augment="flip"), model=str(model)
        )
    config = replace(TUNE, from_="block4_conv1")
    with pytest.raises(UserError, match=r"cut block4_pool, not block3_pool.*--cut block3_pool"):
        finetune(str(tmp_path / "features"), str(tmp_path / "x"), config, model=str(model))
    assert not (tmp_path / "x").exists()


def test_streamed_views_train_two_workers_as_cached_ones_train_one(images, model, tuned, ray, tmp_path):
    """Two cached views, taken in turn, are those of the first two epochs."""
    config, train = replace(TUNE, augment="rotation=30,zoom=0.2,flip"), str(images / "train")
    finetune(train, str(tmp_path / "streamed"), replace(config, workers=2), model=str(model))
    finetune(train, str(tmp_path / "cached"), replace(config, views=2), model=str(model))
    close(tmp_path / "streamed", tmp_path / "cached", 1e-5)
    plain, streamed, cached = (
        json.loads((folder / "manifest.json").read_text())["history"]
        for folder in (tuned, tmp_path / "streamed", tmp_path / "cached")
    )
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
    listed = list(Images.open(str(tmp_path / "train.tar")))
    paths = [row.path for row in listed]
    places = {name: [getattr(row, name) for row in listed] for name in ("path", "offset", "modified")}
    views = Views(Augmentation.parse("strong"), 7)
    root = Folder.open(str(tmp_path))
    read_image = Reader(root)
    source = ViewSource(
        max_pixels=10_000,
        root=root,
        images=ray_module.put(pa.table(places)),
        views=views,
        image_size=SIZE,
        load_network=frozen.loader(),
    )
    for rank in (0, 1):
        batches = GlobalBatches(rows=len(paths), batch_size=24, workers=2, rank=rank, seed=3)
        stream = ViewStream(source, batches, range(1, 3))
        steps = [(epoch, step) for epoch in (1, 2) for step in range(batches.steps)]
        for epoch, step in steps:
            rows, weights = batches.slice(batches.order(epoch), step)
            found = stream.take(epoch, step, rows)
            assert len(found) == 12
            for row, weight, features in zip(rows, weights, found, strict=True):
                plain = decoder.decode(read_image(paths[row]), SIZE)
                expected = views.view(plain, paths[row], epoch) / 255 if weight else np.zeros_like(plain)
                np.testing.assert_allclose(features, expected.ravel(), atol=1e-6)


def test_from_scratch_with_a_split_that_evaluation_and_prediction_know(images, ray, tmp_path, monkeypatch):
    """Batch normalisation, dropout, augmentation, two workers, a bad image, all from the input on."""
    config = FinetuneConfig(
        backbone="small-vggnet",
        image_size=16,
        from_="input",
        head="dense-512",
        augment="light",
        epochs=2,
        batch_size=20,
        split=0.75,
        seed=42,
        validation="test",
        workers=2,
    )
    folder = tmp_path / "images"
    for path in images.glob("train/*/*.png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).symlink_to(path)
    (folder / "3" / "bad.png").write_bytes(b"no image")
    with pytest.raises(JobError, match=r"1 of 102 images are bad, more than --max-bad-fraction 0 allows"):
        finetune(str(folder), str(tmp_path / "model"), replace(config, max_bad_fraction=0.0))
    # The same job, which goes on with what was done.
    found = finetune(str(folder), str(tmp_path / "model"), config)
    assert found.rows + found.validation_rows == TRAINING
    assert found.errors == 1
    assert pq.read_table(tmp_path / "model" / "errors")["path"].to_pylist() == ["3/bad.png"]
    assert found.trainable_tensors == found.tensors
    scores = evaluate(str(tmp_path / "model"), str(folder), EvaluateConfig(precision="float32"))
    assert scores.split == "test"
    assert scores.evaluated == found.validation_rows
    assert scores.accuracy == pytest.approx(found.metrics["val_accuracy"], abs=1e-6)
    assert scores.loss == pytest.approx(found.metrics["val_loss"], rel=1e-3)
    monkeypatch.setattr("tlray.evaluation.model_inference.loader", lambda *given: load_classes)
    table, config = str(tmp_path / "p.csv"), PredictConfig(split="test")
    assert predict(str(tmp_path / "model"), str(folder), table, config).rows == found.validation_rows
    with pytest.raises(UserError, match="no such split: it has test, train"):
        predict(str(tmp_path / "model"), str(folder), table + ".csv", replace(config, split="validation"))

    # Nor is it trained further on what it has held out.
    out = Folder.open(str(tmp_path / "new"))
    further = _from_images(str(folder), out, FinetuneConfig(seed=1), str(tmp_path / "model"), print)
    assert further.facts == {"images": str(folder), "split": 0.75, "split_seed": 42}
    with pytest.raises(UserError, match=r"with --split 0.75 --seed 42, not with --split 0.75 --seed 1"):
        finetune(str(folder), out.uri, FinetuneConfig(split=0.75, seed=1), model=str(tmp_path / "model"))


def test_from_a_layer_after_the_head_is_refused(images, model, tmp_path):
    """A head may follow on a layer in the middle; what comes after is not in the model."""
    early = tmp_path / "early"
    shutil.copytree(model, early)
    manifest = json.loads((early / "manifest.json").read_text())
    (early / "manifest.json").write_text(json.dumps({**manifest, "end": "block4_pool"}))
    with pytest.raises(UserError, match="--from block5_conv1: the network ends at block4_pool"):
        finetune(str(images), str(tmp_path / "out"), TUNE, model=str(early))


def test_a_network_from_scratch_begins_with_the_weights_of_its_seed():
    config = NetworkConfig(backbone="small-vggnet")
    first, again, other = (FrozenPart.decide(config, seed).arrays[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_tuned_model_is_tuned_again_and_its_backbone_is_weights(images, tuned, ray, tmp_path):
    """Frozen above what was trained before, the frozen part is no longer ImageNet's."""
    again, out = tmp_path / "again", tmp_path / "features"
    extract(str(images), str(out), replace(CUT, cut="block5_conv2", weights=str(tuned)))
    finetune(str(out), str(again), replace(TUNE, from_="block5_conv3", epochs=1), model=str(tuned))
    before, after = backbone(tuned), backbone(again)
    moved = {name for name in before if not all(map(np.array_equal, before[name], after[name]))}
    assert moved == {"block5_conv3"}
    first, made, provenance = (
        json.loads((folder / "manifest.json").read_text())["provenance"] for folder in (tuned, out, again)
    )
    assert provenance["weights"] == str(tuned)
    assert first["weights_sha256"] != made["weights_sha256"] == provenance["weights_sha256"]
    assert evaluate(str(again), str(out), EvaluateConfig(), out=str(tmp_path / "r")).evaluated == TEST


BAD = {
    "unknown layer": ({"from_": "block5_con1"}, "unknown layer of vgg16 .* did you mean block5_conv1"),
    "another backbone": ({"backbone": "pixels"}, r"--backbone pixels: .* was made with vgg16"),
    "another size": ({"image_size": 64}, "--image-size 64: .* was made with 32"),
    "unknown augmentation": ({"augment": "strogn"}, "did you mean strong"),
    "unknown head": ({"head": "dense-25"}, "did you mean dense-256"),
    "order of a trained head": ({"classes": "5,3"}, "the model's order is 3,5"),
    "split twice": ({"split": 0.5}, "have splits already"),
    "unknown split": ({"validation": "held-out"}, "no such split"),
    "more workers than images": ({"workers": 500}, "only 101 training rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_say_what_is_wrong_and_write_nothing(name, images, model, ray, tmp_path):
    options, message = BAD[name]
    with pytest.raises(UserError, match=message):
        finetune(str(images), str(tmp_path / "out"), replace(TUNE, **options), model=str(model))
    assert not (tmp_path / "out").exists()


def test_bad_data_is_refused(images, model, ray, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="one class"):
        finetune(_only(images, tmp_path, "3"), out, TUNE, model=str(model))
    with pytest.raises(UserError, match="does not know"):
        finetune(_only(images, tmp_path, "3", "new"), out, TUNE, model=str(model))
    with pytest.raises(UserError, match="--model is missing"):
        finetune(str(images), out, TUNE)
    assert not (tmp_path / "out").exists()


def _only(images: Path, tmp_path: Path, *classes: str) -> str:
    folder = tmp_path / "-".join(classes)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for path in list(images.glob("train/3/*.png"))[:4]:
            (folder / name / path.name).symlink_to(path)
    return str(folder)
