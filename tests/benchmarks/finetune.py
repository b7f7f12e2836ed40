"""Epochs of fine-tuning VGG16's block 5: `tlray finetune` beside Keras' own fit, in one run.

Keras trains the whole network end to end from pixels, and the tail alone on features in memory.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tlray.cluster import session
from tlray.core.config import ExtractConfig, FinetuneConfig, FitConfig
from tlray.features.extract import extract
from tlray.images.decoder import decode
from tlray.models.assemble import trained_part
from tlray.recipes.demo import write_digits
from tlray.training.finetune import finetune
from tlray.training.fit import fit
from tlray.training.starting_point import StartingPoint
from tlray.training.worker.batches import GlobalBatches

SIZE, BATCH, EPOCHS, RATE = 150, 20, 4, 1e-5
CONFIG = FinetuneConfig(
    from_="block5_conv1",
    epochs=EPOCHS,
    batch_size=BATCH,
    optimizer="rmsprop",
    learning_rate=RATE,
    precision="float32",
)


def main() -> None:
    """Measure, and print one JSON object and a sentence."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        images = Path(folder, "all")
        write_digits(str(images))
        two = Path(folder, "images")
        for name in ("01234", "56789"):
            (two / name).mkdir(parents=True)
            for path in sorted(images.glob(f"train/[{name}]/*.png"))[::2][:250]:
                (two / name / path.name).symlink_to(path)
        ours, model = _ours(two, Path(folder))
        theirs = _keras(two, model)
        tail = _keras_tail(two, model)
    found = {
        "images": theirs["images"],
        "keras_epoch_seconds": theirs["seconds"],
        "tlray_epoch_seconds": ours["seconds"],
        "tail_epoch_seconds": tail["seconds"],
        "tail_first_loss": tail["loss"],
        "times_as_fast": theirs["seconds"] / ours["seconds"],
        "keras_first_loss": theirs["loss"],
        "tlray_first_loss": ours["loss"],
    }
    print(json.dumps(found, indent=1))


def _ours(images: Path, folder: Path) -> tuple[dict[str, float], Path]:
    """Seconds of an epoch and the loss of the first; and the model that both start from."""
    features, model = folder / "features", folder / "model"
    extract(str(images), str(features), ExtractConfig(image_size=SIZE, precision="float32"))
    fit(str(features), str(model), FitConfig(head="dense-256-no-dropout", epochs=3))
    times = []
    found = finetune(
        str(images),
        str(folder / "tuned"),
        CONFIG,
        model=str(model),
        report=lambda metrics: times.append(time.perf_counter()),
    )
    return {"seconds": median(np.diff(times)), "loss": found.history[0]["loss"]}, model


def _keras(images: Path, model: Path) -> dict[str, Any]:
    """The same by the whole network, from pixels in memory."""
    import keras

    pixels, targets = _arrays(images)
    saved = keras.saving.load_model(model / "model.keras")
    frozen, head = saved.get_layer("frozen"), saved.get_layer("head")
    saved.trainable = True
    for layer in frozen.get_layer("vgg16").layers:
        layer.trainable = layer.name.startswith("block5")
    image = keras.Input((SIZE, SIZE, 3))
    whole = keras.Model(image, head.get_layer("classifier")(frozen(image)))
    return {**_epochs(whole, pixels, targets), "images": len(targets)}


def _keras_tail(images: Path, model: Path) -> dict[str, Any]:
    """The same by what comes after the cut, from features in memory."""
    pixels, targets = _arrays(images)
    origin = StartingPoint.decide(CONFIG, str(model), None)
    features = origin.frozen.build().predict(pixels, batch_size=32, verbose=0)
    tail = trained_part(origin.frozen, origin.end, origin.head, 2)
    tail.get_layer("classifier").set_weights(origin.head_weights)
    return _epochs(tail, features, targets)


def _arrays(images: Path) -> tuple[Any, Any]:
    """Pixels and targets of all images."""
    files = sorted(images.glob("*/*.png"))
    pixels = np.stack([decode(path.read_bytes(), SIZE) for path in files])
    return pixels, np.array([path.parent.name == "56789" for path in files], np.float32)[:, None]


def _epochs(model: Any, inputs: Any, targets: Any) -> dict[str, float]:
    """Seconds of an epoch of Keras' fit, and the loss of the first."""
    import keras

    model.compile(keras.optimizers.RMSprop(RATE), "binary_crossentropy")
    batches = GlobalBatches(rows=len(targets), batch_size=BATCH, workers=1, rank=0, seed=0)
    losses, seconds = [], []
    for epoch in range(EPOCHS):
        order = batches.order(epoch)
        started = time.perf_counter()
        found = model.fit(inputs[order], targets[order], batch_size=BATCH, shuffle=False, verbose=0)
        seconds.append(time.perf_counter() - started)
        losses.append(found.history["loss"][0])
    return {"seconds": median(seconds[1:]), "loss": losses[0]}


if __name__ == "__main__":
    with session.connect(None):
        main()
    sys.exit(0)
