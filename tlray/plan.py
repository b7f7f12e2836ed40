"""What an extraction would cost here, from a sample that is really decoded, computed and written."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from tlray import decoder, featureset
from tlray.config import ExtractConfig
from tlray.errors import JobError
from tlray.listing import Images, Listed
from tlray.network import FrozenPart, compile_network
from tlray.reading import Reader
from tlray.runtime import prepare_keras
from tlray.storage import Folder


def plan(images: str, config: ExtractConfig, *, sample: int = 64) -> dict[str, Any]:
    """Time a sample of an extraction on this machine and reckon the whole job from it.

    Args:
        images: a folder, URI, table or image; see `tlray.listing.Images`.
        config: of the extraction.
        sample: how many images are tried.

    Returns:
        JSON values: images, bytes_read (None for a table), sample, sample_errors, read_ms and
        decode_ms (an image and core), network_ms (an image, all cores or one GPU), cores, gpus,
        images_per_second, seconds, gpu_hours, feature_shape, bytes_written.

    Raises:
        UserError: no images, or a network that is not to be had.
        JobError: no image of the sample can be decoded.
    """
    source = Images.open(images)
    frozen = FrozenPart.decide(config)
    found, size, chosen = _survey(source, sample)
    read, decode, pixels = _decode(source.root, chosen, frozen.provenance.image_size, config.max_pixels)
    prepare_keras()
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    network = compile_network(frozen.build(), frozen.provenance.image_size, frozen.provenance.precision)
    batch = np.resize(pixels, (config.batch_size, *pixels.shape[1:]))  # The sample again and again.
    network(batch)
    calls = max(1, round(sample / config.batch_size))
    started = time.perf_counter()
    for _ in range(calls):
        features = network(batch)
    compute = (time.perf_counter() - started) / (calls * config.batch_size)
    cores = len(os.sched_getaffinity(0))
    # A GPU computes while the cores decode; on a CPU both share the cores.
    prepare = (read + decode) / cores
    each = max(compute / gpus, prepare) if gpus else compute + prepare
    return {
        "images": found,
        "bytes_read": size,
        "sample": len(chosen),
        "sample_errors": len(chosen) - len(pixels),
        "read_ms": round(1e3 * read, 3),
        "decode_ms": round(1e3 * decode, 3),
        "network_ms": round(1e3 * compute, 3),
        "cores": cores,
        "gpus": gpus,
        "precision": frozen.provenance.precision,
        "images_per_second": round(1 / each, 3),
        "seconds": round(found * each, 1),
        "gpu_hours": round(found * each * gpus / 3600, 3),
        "feature_shape": list(features.shape[1:]),
        "bytes_written": round(found * row_bytes(features[: len(pixels)], config.store)),
    }


def _survey(source: Iterable[Listed], sample: int) -> tuple[int, int | None, list[Listed]]:
    """How many images there are, their bytes, and an even sample of them (reservoir sampling)."""
    draw = random.Random(0)
    found, size, sized = 0, 0, 0
    chosen: list[Listed] = []
    for image in source:
        found += 1
        if image.size is not None:
            size, sized = size + image.size, sized + 1
        if len(chosen) < sample:
            chosen.append(image)
        elif (place := draw.randrange(found)) < sample:
            chosen[place] = image
    return found, size if sized else None, chosen


def _decode(root: Folder, images: list[Listed], image_size: int, max_pixels: int) -> tuple[float, float, Any]:
    """Seconds an image for reading and for decoding, and the pixels of those that are good."""
    read = decode = 0.0
    good = []
    read_image = Reader(root)
    for image in images:
        started = time.perf_counter()
        try:
            data = read_image(image.path, image.offset, image.modified)
            read += time.perf_counter() - started
            started = time.perf_counter()
            good.append(decoder.decode(data, image_size, max_pixels))
            decode += time.perf_counter() - started
        except decoder.BadImage as bad:
            reason = bad
    if not good:
        raise JobError(f"no image of a sample of {len(images)} can be decoded, e.g. {reason.message}")
    return read / len(images), decode / len(good), np.stack(good)


def row_bytes(features: Any, store: str) -> float:
    """Bytes of a row in a part file: of features (rows, *shape), kept as float32 or float16."""
    rows = pa.table({name: pa.array([""] * len(features)) for name in ("path", "split", "label")})
    with tempfile.TemporaryDirectory(prefix="tlray-") as name:
        folder = Folder.open(name)
        featureset.write_part(folder, 0, rows, iter([features]), features.shape[1:], store, {})
        return os.path.getsize(folder.join(featureset.part_name(0))) / len(features)
