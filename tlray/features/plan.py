"""Estimates the cost of an extraction from a sample that is read, decoded, computed and written."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.cluster import nodes, session
from tlray.core.config import ExtractConfig
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import package_versions
from tlray.core.results import Account
from tlray.core.settings import COUNT, check, configured
from tlray.core.storage import Folder, StrPath
from tlray.features import part_files, throughput
from tlray.features.throughput import Cost, Kind, Throughput
from tlray.images.account import Announce, Tally, warn
from tlray.images.bad_image import BadImage
from tlray.images.conventions import ColumnNames
from tlray.images.listing import Images, Listed
from tlray.images.loader import ImageLoader
from tlray.models.compiled import Network
from tlray.models.frozen import FrozenPart


@dataclass(frozen=True, kw_only=True)
class Plan(Throughput):
    """The cost of an extraction, estimated from a sample."""

    images: int
    account: Account
    """What was understood of the images."""
    bytes_read: int | None
    """None if the sizes of the images are not known, as in a table."""
    sample: int
    """The number of images in the sample."""
    sample_errors: int
    """The number of bad images in the sample."""
    precision: str
    seconds: float
    """The duration of the whole extraction without its start."""
    gpu_hours: float
    feature_shape: list[int]
    """The shape of the features of one row."""
    bytes_written: int


def plan(
    images: StrPath,
    config: ExtractConfig | None = None,
    *,
    sample: int = 64,
    cluster: bool = False,
    address: str | None = None,
    announce: Announce = warn,
    **settings: Any,
) -> Plan:
    """Time a sample of an extraction, here or on a Ray cluster, and estimate the whole job from it.

    Args:
        images: the folder, URI, table or image to read; see `tlray.images.listing.Images`.
        config: the settings of the extraction.
        sample: the number of images in the sample.
        cluster: whether to time it on one node of each kind of a Ray cluster instead of in this process.
        address: the address of that Ray.
        announce: called with what was understood of the images, before the first one is decoded. By default,
            its warnings become Python's.
        settings: single fields of `config`, e.g. `image_size=224`.

    Raises:
        UserError: there are no images, the network is not available, or there is no such Ray.
        JobError: no image of the sample can be decoded, or a node cannot time the sample.
    """
    config = configured(ExtractConfig, config, settings)
    check("sample", sample, COUNT)
    if cluster and address is None and not session.is_connected():
        raise UserError("--cluster needs a Ray: give its --address, or use `tlray submit -- plan ...`")
    source = Images.open(images, ColumnNames.of(config))
    frozen = FrozenPart.decide(config)
    tally = Tally()
    size, chosen = _survey(source, sample, tally)
    count = tally.counts.total()
    account = tally.account(source, complete=True)
    announce(account)
    image_size, packages = frozen.provenance.image_size, package_versions(frozen.provenance.package)
    arguments = source.root, chosen, config, image_size, packages
    if cluster:
        with session.connect(address) as connected:
            connected()
            pool = nodes.pool(config.actor_range, config.gpus_per_actor)
            costs = throughput.measure_kinds(pool, _measure, frozen.loader(), *arguments)
    else:
        pool, costs = _local(_measure(True, frozen.compile, *arguments))
    estimate = throughput.estimate(costs, pool)
    seconds = count / estimate.images_per_second
    cost = next(cost for _, cost in costs.values() if cost.network is not None)
    return Plan(
        **vars(estimate),
        images=count,
        account=account,
        bytes_read=size,
        sample=len(chosen),
        sample_errors=cost.errors,
        precision=frozen.provenance.precision,
        seconds=round(seconds, 1),
        gpu_hours=round(seconds * estimate.gpus / 3600, 3),
        feature_shape=cost.row_shape or [],
        bytes_written=round(count * (cost.row_bytes or 0)),
    )


def _local(cost: Cost) -> tuple[nodes.Pool, dict[Kind, tuple[int, Cost]]]:
    """This machine, described as a Ray with one node."""
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    actors = max(1, gpus)
    kind = Kind(cpus=len(os.sched_getaffinity(0)), gpus=gpus, accelerator=None, actors=actors)
    return nodes.Pool(actors, actors, gpus=min(1, gpus), cpus=0, decode_cpus=1), {kind: (1, cost)}


def _measure(
    with_network: bool,
    load: Callable[[], Network],
    root: Folder,
    images: list[Listed],
    config: ExtractConfig,
    image_size: int,
    packages: Mapping[str, str],
) -> Cost:
    """The cost of a sample in this process."""
    nodes.agree(packages)
    decoded = []
    # This is never a Ray task that Ray runs again, so `in_task` would be wrong on a cluster too.
    with ImageLoader(root, image_size, config.max_pixels, config.seconds_per_image) as load_image:
        for image in images:
            try:
                decoded.append(load_image(image.place))
            except BadImage as bad:
                reason = bad.message
    if not decoded:
        raise JobError(f"no image of a sample of {len(images)} can be decoded, e.g. {reason}")
    read, decode = load_image.read_seconds / len(images), load_image.decode_seconds / len(images)
    errors = len(images) - len(decoded)
    if not with_network:
        return Cost(read, decode, None, errors, None, None)
    network = load()
    # The batch repeats the sample until it is full.
    batch = np.resize(np.stack(decoded), (config.batch_size, *decoded[0].shape))
    network(batch)
    calls = max(1, round(len(images) / config.batch_size))
    started = time.perf_counter()
    for _ in range(calls):
        features = network(batch)
    compute = (time.perf_counter() - started) / (calls * config.batch_size)
    written = row_bytes(features[: len(decoded)], config.store)
    return Cost(read, decode, compute, errors, list(features.shape[1:]), written)


def _survey(source: Iterable[Listed], sample: int, tally: Tally) -> tuple[int | None, list[Listed]]:
    """Count the images; return the sum of their known sizes, and an even sample (reservoir sampling)."""
    draw, size = random.Random(0), None
    chosen: list[Listed] = []
    for count, image in enumerate(source, 1):
        tally.add(image.split, image.label)
        if image.size is not None:
            size = (size or 0) + image.size
        if len(chosen) < sample:
            chosen.append(image)
        elif (place := draw.randrange(count)) < sample:
            chosen[place] = image
    return size, chosen


def row_bytes(features: Any, store: str) -> float:
    """The bytes of a row in a part file with these features, (rows, *shape), stored as float32 or float16."""
    rows = pa.table({name: pa.array([""] * len(features)) for name in ("path", "split", "label")})
    with tempfile.TemporaryDirectory(prefix="tlray-") as name:
        folder = Folder.open(name)
        part_files.write_part(folder, 0, rows, iter([features]), features.shape[1:], store, {})
        return os.path.getsize(folder.join(part_files.part_name(0))) / len(features)
