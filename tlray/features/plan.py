"""What an extraction would cost, from a sample that is really decoded, computed and written."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.cluster import nodes, session
from tlray.cluster.nodes import Pool
from tlray.core.config import ExtractConfig
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import package_versions
from tlray.core.runtime import prepare_keras
from tlray.core.settings import configured
from tlray.core.storage import Folder, StrPath
from tlray.features import part_files, throughput
from tlray.features.throughput import Cost, Kind, Throughput
from tlray.images.bad_image import BadImage
from tlray.images.listing import Images, Listed
from tlray.images.loader import ImageLoader
from tlray.models.compiled import Network, compile_network
from tlray.models.frozen import FrozenPart


@dataclass(frozen=True, kw_only=True)
class Plan(Throughput):
    """What an extraction would take, estimated from a sample."""

    images: int
    bytes_read: int | None
    """None if the sizes of the images are not known, as in a table."""
    sample: int
    """Images that were tried."""
    sample_errors: int
    """Images of the sample that are bad."""
    precision: str
    seconds: float
    """That the whole extraction takes, without its start."""
    gpu_hours: float
    feature_shape: list[int]
    """Of one row of features."""
    bytes_written: int


def plan(
    images: StrPath,
    config: ExtractConfig | None = None,
    *,
    sample: int = 64,
    cluster: bool = False,
    address: str | None = None,
    **settings: Any,
) -> Plan:
    """Time a sample of an extraction, here or on a Ray cluster, and estimate the whole job from it.

    Args:
        images: a folder, URI, table or image; see `tlray.images.listing.Images`.
        config: of the extraction.
        sample: how many images are tried.
        cluster: try them on a node of each kind of a Ray, not in this process.
        address: of that Ray.
        settings: single fields of `config`, e.g. `image_size=224`.

    Raises:
        UserError: no images, a network that is not to be had, or no such Ray.
        JobError: no image of the sample can be decoded, or a node cannot try it.
    """
    config = configured(ExtractConfig, config, settings)
    if cluster and address is None and not session.is_connected():
        raise UserError("--cluster: which? Give its --address, or run it there: tlray submit -- plan ...")
    source = Images.open(images)
    frozen = FrozenPart.decide(config)
    count, size, chosen = _survey(source, sample)
    arguments: dict[str, Any] = {
        "root": source.root,
        "images": chosen,
        "config": config,
        "image_size": frozen.provenance.image_size,
        "packages": package_versions(frozen.provenance.package),
    }
    if cluster:
        with session.connect(address) as connected:
            connected()
            pool = nodes.pool(config.actor_range, config.gpus_per_actor)
            tried = throughput.try_kinds(pool, _measure, {**arguments, "load": frozen.loader()})
    else:
        cost = _measure(True, **arguments, load=partial(_load_here, frozen))
        pool, tried = _here(cost)
    estimate = throughput.estimate(tried, pool)
    seconds = count / estimate.images_per_second
    whole = next(cost for _, cost in tried.values() if cost.network is not None)
    return Plan(
        **vars(estimate),
        images=count,
        bytes_read=size,
        sample=len(chosen),
        sample_errors=whole.errors,
        precision=frozen.provenance.precision,
        seconds=round(seconds, 1),
        gpu_hours=round(seconds * estimate.gpus / 3600, 3),
        feature_shape=whole.row_shape or [],
        bytes_written=round(count * (whole.row_bytes or 0)),
    )


def _load_here(frozen: FrozenPart) -> Network:
    prepare_keras()
    return compile_network(frozen.build(), frozen.provenance.image_size, frozen.provenance.precision)


def _here(cost: Cost) -> tuple[Pool, dict[Kind, tuple[int, Cost]]]:
    """This machine, as a Ray of one node."""
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    actors = max(1, gpus)
    kind = Kind(cpus=len(os.sched_getaffinity(0)), gpus=gpus, accelerator=None, actors=actors)
    return Pool(actors, actors, gpus=min(1, gpus), cpus=0, decode_cpus=1), {kind: (1, cost)}


def _measure(
    with_network: bool,
    *,
    root: Folder,
    images: list[Listed],
    config: ExtractConfig,
    image_size: int,
    packages: Mapping[str, str],
    load: Callable[[], Network],
) -> Cost:
    """Try a sample in this process."""
    nodes.agree(packages)
    read, decode, pixels = _decode(root, images, image_size, config.max_pixels)
    errors = len(images) - len(pixels)
    if not with_network:
        return Cost(read, decode, None, errors, None, None)
    network = load()
    batch = np.resize(pixels, (config.batch_size, *pixels.shape[1:]))  # The sample again and again.
    network(batch)
    calls = max(1, round(len(images) / config.batch_size))
    started = time.perf_counter()
    for _ in range(calls):
        features = network(batch)
    compute = (time.perf_counter() - started) / (calls * config.batch_size)
    written = row_bytes(features[: len(pixels)], config.store)
    return Cost(read, decode, compute, errors, list(features.shape[1:]), written)


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
    good = []
    # `in_task` would be wrong on a cluster as well: Ray tries a task of a plan only once.
    with ImageLoader(root, image_size, max_pixels) as load:
        for image in images:
            try:
                good.append(load(image.place))
            except BadImage as bad:
                reason = bad
    if not good:
        raise JobError(f"no image of a sample of {len(images)} can be decoded, e.g. {reason.message}")
    return load.read_seconds / len(images), load.decode_seconds / len(images), np.stack(good)


def row_bytes(features: Any, store: str) -> float:
    """Bytes of a row in a part file: of features (rows, *shape), kept as float32 or float16."""
    rows = pa.table({name: pa.array([""] * len(features)) for name in ("path", "split", "label")})
    with tempfile.TemporaryDirectory(prefix="tlray-") as name:
        folder = Folder.open(name)
        part_files.write_part(folder, 0, rows, iter([features]), features.shape[1:], store, {})
        return os.path.getsize(folder.join(part_files.part_name(0))) / len(features)
