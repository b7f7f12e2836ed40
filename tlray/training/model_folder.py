"""The folder of a model while a job writes to it: reserved for the job, continued, given up or finished."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from tlray.core.config import TrainConfig
from tlray.core.errors import DivergenceError, UserError
from tlray.core.manifest import MANIFEST, other_job
from tlray.core.record import dump, plain
from tlray.core.results import Account, ImageError, TrainingSummary
from tlray.core.storage import Folder, is_temporary
from tlray.models.model import Model, ModelManifest

WORK = ".training"
"""The folder for work in progress, inside the model's folder until the model is complete."""
_JOB = "job.json"
_RESOURCES = ("workers", "min_workers", "actors", "gpus_per_actor")
_CIRCUMSTANCES = (*_RESOURCES, "max_bad_fraction", "seconds_per_image")
"""Settings that a job may be continued with other values of."""


@dataclass(frozen=True, kw_only=True)
class TrainResult(TrainingSummary):
    """The result of `fit` or `finetune`."""

    out: str
    """The URI of the model."""
    was_complete: bool
    """Whether the model was complete before, so that this run had nothing to do."""
    first_errors: list[ImageError]
    """The first three error rows of this run, in the order of the listing."""
    errors_uri: str | None
    """The folder with all error rows; None if there are none."""
    warnings: list[str]
    """Sentences about a training that cannot have learned anything."""
    account: Account | None = None
    """What was understood of the images."""


@contextmanager
def reserved(folder: Folder, job: Mapping[str, Any]) -> Iterator[None]:
    """Reserve a model's folder for a new or continued job; raise UserError if it holds something else.

    If a UserError leaves the block, the files of a new job are removed; those of a training that has diverged
    are always removed, because it would diverge again.
    """
    with folder.locked():
        work = folder.child(WORK)
        is_begun = work.is_file(_JOB)
        if is_begun and (begun := json.loads(work.read(_JOB))) != plain(job):
            raise other_job(folder, "another job, which is not finished", begun, plain(job))
        if not is_begun:
            names = [*(name for name in folder.names() if name != WORK), *folder.walk(WORK)]
            others = [name for name in names if not is_temporary(posixpath.basename(name))]
            if others:
                raise UserError(
                    f"{folder.uri} is not empty and is no model of tlray (it holds {others[0]}): "
                    "choose a new folder"
                )
            work.write(_JOB, dump(job).encode())
        try:
            yield
        except (UserError, DivergenceError) as error:
            if not is_begun or isinstance(error, DivergenceError):
                remove_work(folder)
            raise


def remove_work(folder: Folder) -> None:
    """Remove the work in progress from a model's folder, and last the file that shows that it is tlray's."""
    work = folder.child(WORK)
    if work.is_file(_JOB):
        for name in sorted(work.names(), key=lambda name: name == _JOB):
            work.remove(name)
    work.remove_empty()


def identity(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that identify a training, which are all except `_CIRCUMSTANCES`."""
    return {name: value for name, value in asdict(config).items() if name not in _CIRCUMSTANCES}


def finished(folder: Folder, job: Mapping[str, Any]) -> TrainResult | None:
    """Return the result of this job if it is finished; raise UserError if the model is of another job."""
    if not folder.is_file(MANIFEST):
        return None
    manifest = Model.open(folder.uri).manifest
    if manifest.job != plain(job):
        raise other_job(folder, "a model of another job", manifest.job, plain(job))
    with folder.locked():
        remove_work(folder)  # An earlier run may have been killed just before it did.
    return result(folder, manifest, was_complete=True)


def result(
    folder: Folder, manifest: ModelManifest, first_errors: Sequence[ImageError] = (), *, was_complete: bool
) -> TrainResult:
    """Return the result of a command that trains, from the manifest of its model."""
    summary = {field.name: getattr(manifest, field.name) for field in fields(TrainingSummary)}
    return TrainResult(
        **summary,
        out=folder.uri,
        was_complete=was_complete,
        first_errors=list(first_errors),
        errors_uri=folder.child("errors").uri if manifest.errors else None,
        warnings=list(_warnings(manifest)),
        account=manifest.account,
    )


def _warnings(manifest: ModelManifest) -> Iterator[str]:
    if not manifest.trainable_tensors:
        yield "nothing was trained: no layer that is trained has weights; give an earlier layer by --from"
    elif manifest.history and manifest.history[0].get("loss") == 0:
        yield (
            "the loss was 0 from the first epoch on, so the weights cannot have changed: check the labels, "
            "or start with a new --head"
        )
