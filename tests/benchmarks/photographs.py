"""Images to measure with: the user's photographs or crops of scikit-learn's two, and Fashion-MNIST."""

import gzip
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIZE = (500, 375)
"""As the cats and dogs that the published systems were measured with."""


def write(target: Path, count: int, source: Path | None) -> Path:
    """Write `count` photographs in two classes to `target`, and return it.

    Args:
        source: a folder with two classes, whose images are linked, again and again if there are fewer;
            None: crops of scikit-learn's two photographs, which differ in place and scale.
    """
    if source is not None:
        classes = sorted(path for path in source.iterdir() if path.is_dir())[:2]
        files = [sorted(folder.iterdir()) for folder in classes]
        for folder, paths in zip(classes, files, strict=True):
            for number, path in enumerate(islice(cycle(paths), count // 2)):
                link = target / folder.name / f"{number:06d}{path.suffix}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        return target
    draw = np.random.default_rng(0)
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        whole = Image.fromarray(pixels)
        (target / name).mkdir(parents=True)
        for number in range(count // 2):
            scale = draw.uniform(0.5, 1)
            width, height = int(whole.width * scale), int(whole.height * scale)
            left = int(draw.integers(0, whole.width - width + 1))
            top = int(draw.integers(0, whole.height - height + 1))
            crop = whole.crop((left, top, left + width, top + height)).resize(SIZE)
            crop.save(target / name / f"{number:06d}.jpg", quality=92)
    return target


def fashion_mnist(source: Path, split: str) -> Iterator[tuple[Any, int]]:
    """Read the pixels (28, 28) and the class of each image of Debian's package `dataset-fashion-mnist`."""
    files = [source / f"{split}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")]
    images, labels = (gzip.decompress(path.read_bytes()) for path in files)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return zip(pixels, np.frombuffer(labels, np.uint8, offset=8), strict=True)
