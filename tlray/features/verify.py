"""Checks that a feature set is complete, and that its features still match the images."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tlray.core.errors import JobError
from tlray.core.record import Record
from tlray.core.settings import COUNT, check
from tlray.core.storage import Folder, StrPath
from tlray.features.feature_set import FeatureSet, Rows
from tlray.images.bad_image import BadImage
from tlray.images.conventions import ColumnNames
from tlray.images.index_diff import COLUMNS, Changes, IndexDiff
from tlray.images.listing import Images
from tlray.images.loader import ImageLoader
from tlray.images.reader import Place
from tlray.models.frozen import FrozenPart

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""The allowed relative error of a row, by precision. Another machine or batch size changes the order of
additions, which matters more in a lower precision."""
_STORED = 1e-3
"""The tolerance that storing as float16 adds."""


@dataclass(frozen=True, kw_only=True)
class Verification(Record):
    """The findings about a feature set that is complete and correct."""

    rows: int
    errors: int
    """The number of error rows."""
    sample: int
    """The number of rows that were extracted again."""
    largest_error: float
    """The largest relative error of these rows."""
    tolerance: float
    """The relative error that is allowed."""
    changes: Changes
    """How the images differ now from those of the set."""


def verify(features: StrPath, images: StrPath, *, sample: int = 64) -> Verification:
    """Check all files of a feature set, and a sample of its rows against the images.

    Args:
        features: the folder or URI of a finished feature set.
        images: the images from which it was extracted, wherever they are now.
        sample: the number of rows that are extracted again, in this process.

    Raises:
        UserError: there is no finished set, or its network is not installed here.
        JobError: a file is missing or damaged, its rows are not those of the images, an image can no longer
            be decoded, or a feature differs by more than the tolerance.
    """
    check("sample", sample, COUNT)
    data = FeatureSet.open(features)
    job = data.manifest.job
    source = Images.open(images, ColumnNames.of(job)).assign(job.split, job.seed or 0)
    frozen = FrozenPart.of(data.provenance)
    errors = data.check()
    rows = _sample(data, sample)
    # Compare by time only at the original place: copying a file changes its time.
    diff = IndexDiff(data.index().tables(*COLUMNS), by_time=Folder.open(images).uri == data.facts["images"])
    for _ in diff.new(source):
        pass
    pixels = []
    with ImageLoader(source.root, data.provenance.image_size, job.max_pixels) as load:
        for path in rows.paths:
            try:
                pixels.append(load(Place(path)))
            except BadImage as bad:
                reason = f"{bad.message} ({bad.error})"
                raise JobError(f"{path} was good when it was extracted, and is bad now: {reason}") from bad
    network = frozen.compile()
    stored = rows.features.reshape(len(rows.paths), -1).astype(np.float64)
    batches = [network(np.stack(pixels[start : start + 32])) for start in range(0, len(pixels), 32)]
    computed = np.concatenate(batches).reshape(stored.shape)
    norms = np.maximum(np.linalg.norm(computed, axis=1), 1e-12)
    differences = np.linalg.norm(stored - computed, axis=1) / norms
    worst = int(differences.argmax())
    tolerance = TOLERANCE[data.provenance.precision] + (_STORED if data.provenance.store == "float16" else 0)
    if not differences[worst] <= tolerance:
        count = int((~(differences <= tolerance)).sum())
        raise JobError(
            f"{count} of {len(pixels)} features do not match their images, e.g. {rows.paths[worst]} "
            f"(relative error {differences[worst]:.2g}, tolerance {tolerance:.2g}): images have changed"
        )
    return Verification(
        rows=data.manifest.rows,
        errors=errors,
        sample=len(pixels),
        largest_error=float(differences[worst]),
        tolerance=tolerance,
        changes=diff.changes(),
    )


def _sample(data: FeatureSet, count: int) -> Rows:
    """Read all rows, which compares their checksums, and their names with the index; return random ones."""
    total = data.manifest.rows
    chosen = np.zeros(total, bool)
    chosen[random.Random(0).sample(range(total), min(count, total))] = True
    parts, start = [], 0
    for rows in data.batches():
        end = start + len(rows.paths)
        if chosen[start:end].any():
            parts.append(rows.where(chosen[start:end]))
        start = end
    if not parts:
        raise JobError(f"{data.folder.uri} has no rows to compare")
    return Rows.join(parts, (0, *data.shape))
