"""Writes copies of images that have the predicted class and its probability on them."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from tlray.cluster import session
from tlray.core.config import MAX_PIXELS
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.features import feature_set, part_files
from tlray.features.inference_tasks import InferenceJob
from tlray.images import copies, sandbox
from tlray.images.bad_image import BadImage
from tlray.images.reader import Reader

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


def check_target(root: Folder, target: Folder) -> None:
    """Raise UserError if a folder cannot be written to, or is the folder of the images."""
    if target.is_local and root.is_local and os.path.realpath(target.path) == os.path.realpath(root.path):
        raise UserError(f"--annotate {target.uri} is the folder of the images: choose another folder")
    try:
        target.write(".tlray", b"")
        target.remove(".tlray")
    except OSError as error:
        raise UserError(f"--annotate: cannot write to {target.uri}: {error.strerror or error}") from error


def annotate(job: InferenceJob, target: Folder, *, address: str | None) -> None:
    """Annotate every image of a finished job, with one Ray task for each shard."""
    with session.connect(address) as connected:
        connected()
        import ray.data

        shards = [{"shard": shard} for shard in range(len(job.index.shard_sizes))]
        data = ray.data.from_items(shards, override_num_blocks=len(shards)).map(_shard, fn_args=(job, target))
        try:
            for _ in data.iter_batches():
                pass
        except ray.exceptions.RayError as error:
            raise JobError(f"annotating failed: {session.reason(error)}") from error


def annotate_one(
    read_image: Reader,
    run: sandbox.Run,
    path: str,
    label: str,
    probability: float,
    target: Folder,
    max_pixels: int = MAX_PIXELS,
) -> str:
    """Write the copy of one image, whose decoder `run` runs, and return its path below `target`.

    The copy has the path of the image, with folders for archives; what is neither JPEG nor PNG becomes a PNG
    with that suffix. A bad image raises BadImage.
    """
    name, root = copy_name(path), read_image.root
    if target.is_local and os.path.realpath(target.join(name)) == os.path.realpath(root.join(path)):
        raise UserError(f"annotating would overwrite {target.join(name)}: choose another folder")
    draw = partial(
        copies.captioned,
        text=f"{label}: {100 * probability:.1f} %",
        kind=_FORMATS[PurePosixPath(name).suffix.lower()],
        max_pixels=max_pixels,
    )
    target.write(name, run(draw, read_image(path)))
    return name


def copy_name(path: str) -> str:
    """Return the path of the copy, which is below its folder even if `path` is hostile."""
    path = re.sub(r"(?<=\.parquet)#", "/", path, flags=re.IGNORECASE)
    name = "/".join(part for part in path.split("/") if part not in ("", "..", "."))
    return name if PurePosixPath(name).suffix.lower() in _FORMATS else f"{name}.png"


def _shard(row: dict[str, Any], job: InferenceJob, target: Folder) -> dict[str, Any]:
    shard = int(row["shard"])
    classes, read_image = job.metadata["classes"], Reader(job.root)
    with sandbox.in_task() as run:
        for table in part_files.read_shard(job.out, shard, job.metadata["job"]):
            rows = feature_set.Rows.of(table)
            for path, probabilities in zip(rows.paths, rows.features, strict=True):
                best = int(np.argmax(probabilities))
                label, probability = classes[best], float(probabilities[best])
                try:
                    annotate_one(read_image, run, path, label, probability, target, job.settings.max_pixels)
                except BadImage as bad:
                    raise JobError(f"{path} was predicted, but cannot be copied now: {bad}") from bad
    return row
