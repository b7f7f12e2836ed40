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
    """Measure, and print one JSON object."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        images = Path(folder, "all")
        write_digits(str(images))
        two = Path(folder, "images")
        for name in ("01234", "56789"):
            (two / name).mkdir(parents=True)
            for path in sorted(images.glob(f"train/[{name}]/*.png"))[::2][:250]:
                (two / name / path.name).symlink_to(path)
        ours, model = _tlray(two, Path(folder))
        pixels, targets = _arrays(two)
        whole = _epochs(_whole(model), pixels, targets)
        tail = _epochs(*_tail(model, pixels), targets)
    runs = {
        "Keras, the whole network": whole,
        "Keras, block 5 and the head alone, on features in memory": tail,
        "tlray finetune": ours,
    }
    print(json.dumps(runs, indent=1))


def _tlray(images: Path, folder: Path) -> tuple[dict[str, float], Path]:
    """Seconds of an epoch and the loss of the first; and the model that all start from."""
    features, model = str(folder / "features"), str(folder / "model")
    extract(str(images), features, ExtractConfig(image_size=SIZE, precision="float32"))
    fit(features, model, FitConfig(head="dense-256-no-dropout", epochs=3))
    times: list[float] = []

    def report(metrics: dict[str, float]) -> None:
        times.append(time.perf_counter())

    result = finetune(str(images), str(folder / "tuned"), CONFIG, model=model, report=report)
    return {"seconds": median(np.diff(times)), "loss": result.history[0]["loss"]}, Path(model)


def _whole(model: Path) -> Any:
    """The whole network, which takes pixels; the layers below block 5 are frozen."""
    import keras

    saved = keras.saving.load_model(model / "model.keras")
    frozen, head = saved.get_layer("frozen"), saved.get_layer("head")
    saved.trainable = True
    for layer in frozen.get_layer("vgg16").layers:
        layer.trainable = layer.name.startswith("block5")
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, head.get_layer("classifier")(frozen(image)))


def _tail(model: Path, pixels: Any) -> tuple[Any, Any]:
    """What comes after the cut, and the features that it takes."""
    start = StartingPoint.decide(CONFIG, str(model), None)
    features = start.frozen.build().predict(pixels, batch_size=32, verbose=0)
    tail = trained_part(start.frozen, start.end, start.head, 2)
    tail.get_layer("classifier").set_weights(start.head_weights)
    return tail, features


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
        result = model.fit(inputs[order], targets[order], batch_size=BATCH, shuffle=False, verbose=0)
        seconds.append(time.perf_counter() - started)
        losses.append(result.history["loss"][0])
    return {"seconds": median(seconds[1:]), "loss": losses[0]}


if __name__ == "__main__":
    with session.connect(None):
        main()
    sys.exit(0)
