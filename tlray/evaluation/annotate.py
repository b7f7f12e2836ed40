"""Writes copies of images that have the predicted class and its probability on them."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from tlray.cluster import session
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import other_job
from tlray.core.record import dump
from tlray.core.storage import Folder, is_temporary
from tlray.features import feature_set, part_files
from tlray.features.inference_tasks import InferenceJob
from tlray.images import copies, sandbox
from tlray.images.bad_image import BadImage
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.models.model import Model

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
_AMBIGUOUS = re.compile(r"\.(parquet|jpe?g|png)/|\.[0-9a-f]{16}\.(jpe?g|png)$", re.IGNORECASE)
"""Paths of images that a copy of another image can have: those in odd folders, or with a digest."""
_LONGEST = 200
"""Bytes in the name of a file; a temporary name, which may have 255, is longer."""
_MARKER = ".tlray.json"
"""This file says which copies a folder holds."""


def check_target(source: Images, target: Folder, model: Model, *, begin: bool = False) -> None:
    """Check that a folder is for copies of these images by this model only; `begin` marks it as such.

    Raises:
        UserError: the folder holds something else, is among the images, or cannot be written to.
    """
    source.check_outside(target, "--annotate")
    job = {**model.identity, "images": source.root.uri}
    try:
        names, written = [name for name in target.names() if not is_temporary(name)], None
        if names:
            with suppress(ValueError, FileNotFoundError):
                written = json.loads(target.read(_MARKER))
            if not isinstance(written, dict):
                raise UserError(
                    f"--annotate {target.uri} is not empty and has no copies by tlray (it holds {names[0]}): "
                    "choose a new folder"
                )
            if written != job:
                raise other_job(target, "copies of another job", written, job)
        target.write(_MARKER, dump(job).encode())
        if not (written or begin):
            target.remove(_MARKER)
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
    run: sandbox.TimedRun,
    path: str,
    label: str,
    probability: float,
    target: Folder,
    max_pixels: int,
) -> str:
    """Write the copy of one image, whose decoder `run` runs, and return its path below `target`.

    What is neither JPEG nor PNG becomes a PNG. A bad image raises BadImage.
    """
    name = copy_name(path)
    draw = partial(
        copies.captioned,
        text=f"{label}: {100 * probability:.1f} %",
        kind=_FORMATS[PurePosixPath(name).suffix.lower()],
        max_pixels=max_pixels,
    )
    target.write(name, run(draw, read_image(path)))
    return name


def copy_name(path: str) -> str:
    """Return the path of the copy, which is below its folder even if `path` is hostile.

    It is the path of the image, with a folder for a Parquet file. A path that the copy of another image could
    have, and one that is no valid path, becomes one with a digest of the image's path.
    """
    name = re.sub(r"(?<=\.parquet)#", "/", path, flags=re.IGNORECASE)
    parts = [part for part in name.split("/") if part not in ("", "..", ".")]
    suffix = PurePosixPath(name).suffix.lower()
    is_safe = "/".join(parts) == name and suffix in _FORMATS and not _AMBIGUOUS.search(path)
    if is_safe and max(len(part.encode("utf-8", "replace")) for part in parts) <= _LONGEST:
        return name
    # No folder has the suffix of a copy, so that no copy needs the place of a folder.
    folders = [re.sub(r"(?i)(\.(jpe?g|png))$", r"\1_", part[:50]) for part in parts[:-1]]
    digest = hashlib.sha256(path.encode("utf-8", "replace")).hexdigest()[:16]
    file = f"{''.join(parts[-1:])[:50]}.{digest}{suffix if suffix in _FORMATS else '.png'}"
    return "/".join((*folders, file))


def _shard(row: dict[str, Any], job: InferenceJob, target: Folder) -> dict[str, Any]:
    shard = int(row["shard"])
    classes, read_image = job.metadata["classes"], Reader(job.root)
    with sandbox.in_task(job.settings.seconds_per_image) as run:
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
