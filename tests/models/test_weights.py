"""Weights come from the first place that has them, and are what they are called, or are refused."""

import hashlib
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest

from tlray.core.errors import UserError
from tlray.models.interfaces import Backbone, KnownWeights, WeightsProvider
from tlray.models.weights import digest, keras_cache, resolve

# Keras' order is neither that of the names nor that of the sizes.
NAMED = {
    "stem/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "stem/bias": np.array([1.5, -2.5], np.float32),
    "block10/kernel": np.ones((1, 1), np.float32),
    "block9/kernel": np.zeros((3, 1), np.float32),
    "block9/bias": np.full(5, np.pi, np.float32),
}
ARRAYS = list(NAMED.values())
URL = "https://example.invalid/some/net_weights.h5"


class Net(Backbone):
    name = "net"
    image_size = 8
    cuts = ("end",)
    weights: ClassVar = {
        "known": KnownWeights(sha256=digest(ARRAYS), url=URL),
        "nowhere": KnownWeights(sha256=digest(ARRAYS)),
    }

    def build(self, image_size: int) -> Any:
        raise AssertionError("nobody has to build the network for named weights")

    def preprocess(self, pixels: Any) -> Any:
        raise AssertionError


def write_npz(folder: Path, arrays: Sequence[np.ndarray] = ARRAYS) -> Path:
    np.savez(folder / "weights.npz", **dict(zip(NAMED, arrays, strict=False)))
    return folder / "weights.npz"


class Provider(WeightsProvider):
    """Provides what `write` writes, and remembers that it was asked."""

    def __init__(self, name: str = "provider", write: Callable[[Path], Path | None] = write_npz) -> None:
        self.name, self.write = name, write
        self.offers = (("net", "known"), ("net", "nowhere"))
        self.asked: list[tuple[str, str]] = []

    def provide(self, backbone: str, weights: str, folder: Path) -> Path | None:
        self.asked.append((backbone, weights))
        return self.write(folder)


def without(folder: Path) -> None:
    """In the place of `write`, for a provider that does not have the weights."""


def write_h5(path: Path, arrays: Sequence[np.ndarray] = ARRAYS, text: Any = str.encode) -> Path:
    """As Keras 2 wrote it; HDF5 itself sorts what lies in a group by name."""
    layers: dict[str, list[tuple[str, np.ndarray]]] = {"input_1": []}
    for name, array in zip(NAMED, arrays, strict=False):
        layers.setdefault(name.split("/")[0], []).append((f"{name}:0", array))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [text(layer) for layer in layers]
        for layer, variables in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [text(name) for name, _ in variables]
            for name, array in variables:
                group[name] = array
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Keras would have the download; it is not there yet."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in ("keras", "tensorflow"):  # Nothing here needs them.
        monkeypatch.setitem(sys.modules, name, None)
    return tmp_path / "keras" / "models" / "net_weights.h5"


def refusal(name: str, *providers: WeightsProvider) -> str:
    with pytest.raises(UserError) as caught:
        resolve(Net(), name, providers)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2, message
    return message


# The digest


def test_the_digest_is_of_little_endian_floats_in_order():
    values = [0.0, 1.5, -2.25, 1e-30, float("inf"), 3.0]
    expected = hashlib.sha256(b"".join(struct.pack("<f", value) for value in values)).hexdigest()
    assert digest([np.array(values, np.float32)]) == expected
    assert digest([np.array([values[:3], values[3:]], np.float32)]) == expected
    assert digest([np.array(values[:2], ">f4"), np.array(values[2:], np.float64)]) == expected
    assert digest(np.array(values, np.float32)) == expected
    assert digest([values]) == expected
    assert digest([]) == hashlib.sha256().hexdigest()


def test_the_digest_is_of_values_and_their_order_not_of_memory():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert digest([np.asfortranarray(array)]) == digest([array])
    assert digest([np.repeat(array, 2, axis=1)[:, ::2]]) == digest([array])
    assert digest([array.T]) != digest([array])
    assert digest(ARRAYS[::-1]) != digest(ARRAYS)
    changed = [array.copy() for array in ARRAYS]
    changed[-1][-1] += 1e-6
    assert digest(changed) != digest(ARRAYS)


# Files


@pytest.mark.parametrize("text", [str, str.encode, None])
def test_files_are_read_in_their_order(cache, text):
    """Those of Keras 2, whose names are text or bytes, and .npz files."""
    if text:
        write_h5(cache, text=text)
    weights = resolve(Net(), "known", [] if text else [Provider()])
    assert (weights.name, weights.sha256) == ("known", digest(ARRAYS))
    assert [array.tolist() for array in weights.arrays] == [array.tolist() for array in ARRAYS]


def test_nothing_is_unpickled():
    refusal("known", Provider(write=partial(write_npz, arrays=[np.array([print], object)])))


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\x89HDF\r\n\x1a\n and the rest is missing"])
def test_a_damaged_file_in_the_keras_cache(cache, data):
    """As a download leaves it that was killed."""
    cache.parent.mkdir(parents=True)
    cache.write_bytes(data)
    assert str(cache) in refusal("known")
    with h5py.File(cache, "w") as file:  # Whole, but as Keras 3 writes it.
        file.create_group("layers")
    assert str(cache) in refusal("known")


@pytest.mark.parametrize(
    "arrays", [ARRAYS[:-1], [ARRAYS[1], ARRAYS[0], *ARRAYS[2:]], [array + 1 for array in ARRAYS]]
)
@pytest.mark.parametrize("place", ["cache", "provider"])
def test_other_weights_than_the_name_stands_for(cache, arrays, place):
    if place == "cache":
        write_h5(cache, arrays)
        message = refusal("known")
        assert str(cache) in message
    else:
        message = refusal("known", Provider(write=partial(write_npz, arrays=arrays)))
    assert digest(arrays)[:16] in message
    assert digest(ARRAYS)[:16] in message


# Places, in their order


def test_the_cache_is_keras_home(cache, tmp_path, monkeypatch):
    assert keras_cache(URL) == cache
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keras_cache(URL) == tmp_path / ".keras" / "models" / "net_weights.h5"


def test_who_offers_it_is_asked_in_order_until_one_has_it_and_nobody_if_keras_has_it(cache):
    other, *providers = Provider("other"), Provider("a", without), Provider("b"), Provider("c")
    other.offers = (("other", "known"), ("net", "else"))
    for _ in range(2):
        resolve(Net(), "known", [other, *providers])
        assert [provider.asked for provider in (other, *providers)] == [[], *[[("net", "known")]] * 2, []]
        write_h5(cache)


def test_what_a_provider_wrote_is_not_left_behind(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    resolve(Net(), "known", [Provider()])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_provider_that_fails():
    def fail(folder: Path) -> None:
        raise RuntimeError("the package is incomplete")

    message = refusal("nowhere", Provider("failing", fail))
    assert "failing" in message
    assert "the package is incomplete" in message


@pytest.mark.parametrize("data", [None, b"", b"PK\x03\x04 and the rest is missing", b"no zip"])
def test_a_damaged_file_of_a_provider_or_none(data):
    def write(folder: Path) -> Path:
        if data is not None:
            (folder / "damaged.npz").write_bytes(data)
        return folder / "damaged.npz"

    assert "damaged.npz" in refusal("known", Provider(write=write))


def test_weights_that_are_nowhere():
    message = refusal("nowhere", Provider(write=without))
    for word in ("nowhere", "net", "--weights"):
        assert word in message


# Names


@pytest.mark.parametrize(("given", "nearest"), [("knwon", "known"), ("no", "none"), ("imagenet", "known")])
def test_an_unknown_name_brings_the_nearest(given, nearest):
    message = refusal(given, Provider())
    assert repr(given) in message
    assert nearest in message


@pytest.mark.parametrize("name", ["missing.weights.h5", "missing.npz", "some/where", "/some/where.h5"])
def test_a_file_that_is_not_there(name):
    message = refusal(name)
    assert repr(name) in message
    assert ".h5" in message


def test_a_name_is_not_a_folder_of_the_same_name(tmp_path, monkeypatch):
    """Images of ImageNet may well lie in ./imagenet."""
    (tmp_path / "known").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve(Net(), "known", [Provider()]).sha256 == digest(ARRAYS)


# A file known by its own digest


class OnlyAsFile(Net):
    weights: ClassVar = {"known": KnownWeights(file_hash="0" * 32, url=URL)}


@pytest.mark.parametrize("digits", [32, 64])
@pytest.mark.parametrize("place", ["cache", "provider"])
def test_another_file_than_the_one_that_is_known(cache, monkeypatch, digits, place):
    """Whatever arrays it holds; and nobody has to build the network to say so."""
    if place == "cache":
        write_h5(cache)
    monkeypatch.setitem(OnlyAsFile.weights, "known", KnownWeights(file_hash="0" * digits, url=URL))
    with pytest.raises(UserError, match=r"does not hold .* of net: digest (?!0{16}).*, expected 0{16}\.\.\."):
        resolve(OnlyAsFile(), "known", [Provider()])


@pytest.mark.parametrize("digests", [{}, {"sha256": "0" * 64, "file_hash": "0" * 32}])
def test_weights_have_one_digest(digests):
    with pytest.raises(ValueError, match="either sha256 or file_hash"):
        KnownWeights(url=URL, **digests)
