"""What jobs have written, read with nothing of tlray."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pyarrow import fs

Features = dict[str, npt.NDArray[np.floating]]


def read(folder: str | Path, filesystem: fs.FileSystem | None = None) -> Features:
    """Features by path, with plain pyarrow; a path that stands there twice is an error."""
    filesystem = filesystem or fs.LocalFileSystem()
    features: Features = {}
    for info in filesystem.get_file_info(fs.FileSelector(str(folder))):
        if info.base_name.startswith("part-"):
            table = pq.read_table(info.path, filesystem=filesystem)
            values = table["features"].combine_chunks().to_numpy_ndarray()
            for path, value in zip(table["path"].to_pylist(), values, strict=True):
                assert path not in features
                features[path] = value
    return features


def same(features: Features, expected: Features) -> bool:
    """Whether they are of the same images, and equal bit for bit."""
    return features.keys() == expected.keys() and all(
        value.tobytes() == expected[path].tobytes() for path, value in features.items()
    )


def relative(features: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """The relative error of some numbers."""
    return float(np.linalg.norm(features - expected) / np.linalg.norm(expected))


def head_weights(model: str | Path) -> list[npt.NDArray[np.floating]]:
    """The weights of a model's head, in the order of Keras."""
    import keras

    return keras.saving.load_model(Path(model) / "model.keras").get_layer("head").get_weights()


def assert_same_head(model: str | Path, expected: str | Path, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Compare the weights of two models' heads."""
    for weights, others in zip(head_weights(model), head_weights(expected), strict=True):
        np.testing.assert_allclose(weights, others, atol=atol, rtol=rtol)
