"""A model's folder while a job writes to it: claimed, gone on with, given up, or found finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from tlray.core.config import TrainConfig
from tlray.core.errors import UserError
from tlray.core.manifest import MANIFEST
from tlray.core.record import dump, plain
from tlray.core.results import ImageError, TrainingSummary
from tlray.core.storage import Folder
from tlray.models.model import Model, ModelManifest

WORK = ".training"
"""In the model's folder as long as it is not complete; only beside it are other files of an earlier run."""
_JOB = "job.json"
_CIRCUMSTANCES = ("workers", "min_workers", "actors", "gpus_per_actor", "max_bad_fraction")


@dataclass(frozen=True, kw_only=True)
class TrainResult(TrainingSummary):
    """What `fit` or `finetune` has made."""

    out: str
    """The URI of the model."""
    was_complete: bool
    """Whether the model was complete before, so that this run had nothing to do."""
    first_errors: list[ImageError]
    """The first three error rows of this run, in the order of the listing."""
    errors_uri: str | None
    """Where all error rows are; None if there are none."""


@contextmanager
def reserved(folder: Folder, job: Mapping[str, Any]) -> Iterator[None]:
    """Claim a model's folder for a job, or go on with the same job there.

    A UserError that leaves the block leaves nothing behind.

    Raises:
        UserError: the folder holds another job, or other files, or another command writes to it.
    """
    with folder.locked():
        work = folder.child(WORK)
        begun = work.is_file(_JOB)
        if begun and json.loads(work.read(_JOB)) != plain(job):
            raise UserError(
                f"{folder.uri} holds another job, which is not finished: choose another folder, "
                "or remove this one"
            )
        if not begun:
            if any(not name.endswith(".tmp") and name != WORK for name in folder.names()):
                raise UserError(f"{folder.uri} is not empty and is no model of tlray: choose a new folder")
            folder.remove(WORK)
            work.write(_JOB, dump(job).encode())
        try:
            yield
        except UserError:
            if not begun:
                folder.remove(WORK)
            raise


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that make a training another one: not how many workers, or bad images, there may be."""
    return {name: value for name, value in asdict(config).items() if name not in _CIRCUMSTANCES}


def finished(folder: Folder, job: Mapping[str, Any]) -> TrainResult | None:
    """The result of the same job, if it was finished before.

    Raises:
        UserError: the model there is of another job.
    """
    if not folder.is_file(MANIFEST):
        return None
    manifest = Model.open(folder.uri).manifest
    if manifest.job != plain(job):
        raise UserError(
            f"{folder.uri} holds a model of another job: choose another folder, or remove this one"
        )
    folder.remove(WORK)  # An earlier run may have been killed just before it did so.
    return result(folder, manifest, was_complete=True)


def result(
    folder: Folder, manifest: ModelManifest, first_errors: Sequence[ImageError] = (), *, was_complete: bool
) -> TrainResult:
    """What a command that trains tells of the model in a folder."""
    summary = {field.name: getattr(manifest, field.name) for field in fields(TrainingSummary)}
    return TrainResult(
        **summary,
        out=folder.uri,
        was_complete=was_complete,
        first_errors=list(first_errors),
        errors_uri=folder.child("errors").uri if manifest.errors else None,
    )
