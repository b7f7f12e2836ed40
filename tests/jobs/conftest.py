"""One Ray for all jobs, and the images, features and model that many of them start from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.bad_files import encode
from tests.support.numpy_network import installed
from tests.support.s3_server import Server
from tlray.cluster import session
from tlray.core.config import ExtractConfig
from tlray.features.extract import extract
from tlray.recipes.demo import write_digits
from tlray.training.fit import fit

KEPT = {"train": 301, "validation": 60, "test": 60}
"""Digits of each split; no batch size divides the first."""


@pytest.fixture(scope="session")
def ray(server: Server) -> Iterator[None]:
    """One local Ray for all tests; its processes inherit what s3:// means."""
    with session.connect(None, cpus=8) as connected:
        connected()
        yield


@pytest.fixture(scope="session", autouse=True)
def numpy_network() -> Iterator[None]:
    """Where the network does not matter it is grey-pixels, which all these jobs compute in NumPy."""
    with installed():
        yield


def write_some_digits(folder: Path, counts: dict[str, int], classes: str = "0123456789") -> Path:
    """Write so many handwritten digits of each split, of these classes only."""
    write_digits(str(folder))
    for split, count in counts.items():
        files = sorted(folder.glob(f"{split}/*/*.png"), key=lambda path: path.name)
        kept = [path for path in files if path.parent.name in classes][:count]
        for path in set(files) - set(kept):
            path.unlink()
        for path in folder.glob(f"{split}/[!{classes}]"):
            path.rmdir()
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits, 301 for training, 60 each for validation and test."""
    return write_some_digits(tmp_path_factory.mktemp("digits"), KEPT)


VGG16 = ExtractConfig(image_size=64, precision="float32", max_bad_fraction=0.5)


@pytest.fixture(scope="session")
def features(digits: Path, ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of VGG16, of all digits."""
    out = tmp_path_factory.mktemp("features") / "set"
    extract(digits, out, VGG16)
    return out


@pytest.fixture(scope="session")
def model(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on them, trained for 8 epochs."""
    out = tmp_path_factory.mktemp("model") / "dense"
    fit(features, out, epochs=8)
    return out


GREY = ExtractConfig(backbone="grey-pixels", image_size=8, precision="float32")


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """150 pictures in three classes of brightness, by path; two shards, one of 128 and one of 22."""
    noise, files = np.random.default_rng(0), {}
    for number in range(150):
        pixels = noise.integers(0, 60, (8, 8, 3)) + 90 * (number % 3)
        data = encode(Image.fromarray(pixels.astype(np.uint8)), "PNG")
        files[f"{'abc'[number % 3]}/{number:03d}.png"] = data
    return files


@pytest.fixture(scope="session")
def grey(pictures: dict[str, bytes], ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures in `images` and their features in `set`."""
    folder = tmp_path_factory.mktemp("grey")
    for name, data in pictures.items():
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(data)
    extract(folder / "images", folder / "set", GREY)
    return folder
