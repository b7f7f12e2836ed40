"""`make bench`: tlray extract beside the loop people write themselves, on the same images in one run."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tlray.demo import write_digits

HERE = Path(__file__).parent
SIZE = 150

CLASSIC = """
import sys, time
from pathlib import Path
import numpy as np, keras
from PIL import Image
from tlray.config import NetworkConfig
from tlray.network import FrozenPart
paths = sorted(Path(sys.argv[1]).rglob("*.png"))
network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(150, 150, 3))
network.set_weights(FrozenPart.decide(NetworkConfig()).arrays)
features = []
started = time.perf_counter()
for start in range(0, len(paths), 20):
    pixels = [Image.open(p).convert("RGB").resize((150, 150), 0) for p in paths[start:start + 20]]
    features.append(network.predict(np.stack([np.asarray(p, "float32") for p in pixels]) / 255, verbose=0))
print(len(np.concatenate(features)) / (time.perf_counter() - started))
"""
"""ImageDataGenerator's loop: Pillow, nearest pixel, times 1/255, batches of 20, one process."""


def main() -> None:
    """Measure, print the table and write it to README.md beside this file."""
    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        images = Path(folder, "images")
        write_digits(str(images))
        count = sum(1 for _ in images.rglob("*.png"))
        rows = []
        started = time.perf_counter()
        loop = subprocess.run(
            [sys.executable, "-c", CLASSIC, images], capture_output=True, text=True, check=True
        ).stdout
        rows.append(("classic loop, float32", time.perf_counter() - started, float(loop)))
        for precision in ("float32", "auto"):
            out = Path(folder, precision)
            command = [sys.executable, "-m", "tlray", "extract", images, "--out", out, "--json"]
            options = ["--image-size", str(SIZE), "--precision", precision]
            started = time.perf_counter()
            output = subprocess.run(
                [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
            ).stdout
            seconds = time.perf_counter() - started
            assert json.loads(output)["rows"] == count
            name = json.loads((out / "manifest.json").read_text())["provenance"]["precision"]
            rows.append((f"tlray extract, {name}", seconds, count / seconds))
    base = rows[0][1]
    lines = [
        f"| {name} | {seconds:.1f} | {rate:.1f} | {base / seconds:.2f} |" for name, seconds, rate in rows
    ]
    text = TEMPLATE.format(
        count=count,
        size=SIZE,
        rows="\n".join(lines),
        machine=machine(),
        versions=versions(),
    )
    (HERE / "README.md").write_text(text)
    print(text)


TEMPLATE = """# Benchmarks

`make bench` runs everything below and writes this page. Ratios count: the machine is shared. What the recipes
give on real photographs, and an epoch of fine-tuning beside Keras' own, is in `RESULTS.md`.

## Extraction, from the command to the finished set

{count:,} images, {size} px, VGG16 to `block5_pool`. The classic loop is a script of Pillow, nearest-pixel
resizing and `model.predict` in batches of 20, in one process. Its rate leaves the imports out; the seconds
include them. tlray's seconds include starting and stopping Ray.

| what | seconds | images/s | times the classic loop (seconds) |
|---|---|---|---|
{rows}

{machine}. {versions}.
"""


def versions() -> str:
    """Of all that has a hand in the numbers."""
    from tlray import provenance

    return ", ".join(f"{name} {value}" for name, value in provenance.versions().items())


def machine() -> str:
    """The processor of this machine."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return f"{len(models)} cores of {models[0].partition(': ')[2]}, {platform.system()}"


if __name__ == "__main__":
    main()
