"""Photographs to measure with: the user's, or crops of those that scikit-learn ships."""

from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIZE = (500, 375)
"""As the cats and dogs that the published systems were measured with."""


def write(target: Path, count: int, source: Path | None) -> Path:
    """A folder of so many photographs in two classes.

    Args:
        target: the folder.
        count: how many.
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
            left, top = (
                int(draw.integers(0, room + 1)) for room in (whole.width - width, whole.height - height)
            )
            crop = whole.crop((left, top, left + width, top + height)).resize(SIZE)
            crop.save(target / name / f"{number:06d}.jpg", quality=92)
    return target
