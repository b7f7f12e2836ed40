"""A model's folder while a job writes to it: claimed, gone on with, given up, or found finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tlray.core.config import TrainConfig
from tlray.core.errors import UserError
from tlray.core.manifest import dump, plain
from tlray.core.storage import Folder
from tlray.models.model import MANIFEST, Model

WORK = ".training"
"""In the model's folder as long as it is not complete; only beside it are other files of an earlier run."""
_JOB = "job.json"
_CIRCUMSTANCES = ("workers", "min_workers", "actors", "gpus_per_actor", "max_bad_fraction")
RESULT = (
    *("rows", "validation_rows", "epochs", "kept_epoch", "stopped_epoch", "trainable_tensors", "tensors"),
    *("errors", "metrics", "history", "seconds", "limited_by", "time"),
)
"""What a command that trains tells of the model's manifest."""


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


def finished(folder: Folder, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of the same job, if it was finished before.

    Raises:
        UserError: the model there is of another job.
    """
    if not folder.is_file(MANIFEST):
        return None
    there = Model.open(folder.uri).manifest
    if there["job"] != plain(job):
        raise UserError(
            f"{folder.uri} holds a model of another job: choose another folder, or remove this one"
        )
    folder.remove(WORK)  # If it was killed before it came to that.
    return result(folder, there)


def result(folder: Folder, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values, as `tlray.training.fit.fit` returns them."""
    return {"out": folder.uri, **{name: manifest[name] for name in RESULT}}
