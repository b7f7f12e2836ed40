"""Epochs of fine-tuning VGG16's block 5: `tlray finetune` beside Keras' own end-to-end fit, in one run."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tlray import cluster
from tlray.batches import GlobalBatches
from tlray.config import ExtractConfig, FinetuneConfig, FitConfig
from tlray.decoder import decode
from tlray.demo import write_digits
from tlray.extract import extract
from tlray.finetune import finetune
from tlray.fit import fit

SIZE, BATCH, EPOCHS, RATE = 150, 20, 4, 1e-5


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
    found = {
        "images": theirs["images"],
        "keras_epoch_seconds": theirs["seconds"],
        "tlray_epoch_seconds": ours["seconds"],
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
    config = FinetuneConfig(
        from_="block5_conv1",
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer="rmsprop",
        learning_rate=RATE,
        precision="float32",
    )
    times = []
    found = finetune(
        str(images),
        str(folder / "tuned"),
        config,
        model=str(model),
        report=lambda metrics: times.append(time.perf_counter()),
    )
    return {"seconds": median(np.diff(times)), "loss": found["history"][0]["loss"]}, model


def _keras(images: Path, model: Path) -> dict[str, Any]:
    """The same by the whole network, from pixels in memory."""
    import keras

    files = sorted(images.glob("*/*.png"))
    pixels = np.stack([decode(path.read_bytes(), SIZE) for path in files])
    targets = np.array([path.parent.name == "56789" for path in files], np.float32)[:, None]
    saved = keras.saving.load_model(model / "model.keras")
    frozen, head = saved.get_layer("frozen"), saved.get_layer("head")
    saved.trainable = True
    for layer in frozen.get_layer("vgg16").layers:
        layer.trainable = layer.name.startswith("block5")
    image = keras.Input((SIZE, SIZE, 3))
    whole = keras.Model(image, head.get_layer("classifier")(frozen(image)))
    whole.compile(keras.optimizers.RMSprop(RATE), "binary_crossentropy")
    batches = GlobalBatches(rows=len(files), batch_size=BATCH, workers=1, rank=0, seed=0)
    losses, seconds = [], []
    for epoch in range(EPOCHS):
        order = batches.order(epoch)
        started = time.perf_counter()
        found = whole.fit(pixels[order], targets[order], batch_size=BATCH, shuffle=False, verbose=0)
        seconds.append(time.perf_counter() - started)
        losses.append(found.history["loss"][0])
    return {"seconds": median(seconds[1:]), "loss": losses[0], "images": len(files)}


if __name__ == "__main__":
    with cluster.connect(None):
        main()
    sys.exit(0)
