"""The predict job: writes the predicted class and the probabilities of images into one table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tlray.core import parquet
from tlray.core.config import PredictConfig
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import stamp
from tlray.core.record import dump, plain
from tlray.core.results import ImageError, InferenceCounts
from tlray.core.settings import configured
from tlray.core.storage import Folder, StrPath
from tlray.evaluation import annotate, model_inference
from tlray.features import feature_set, inference, part_files
from tlray.images.bad_image import BadImage
from tlray.images.filetypes import is_image
from tlray.images.index_writer import listing_for
from tlray.images.listing import Images, Listed
from tlray.images.loader import ImageLoader
from tlray.images.reader import Reader
from tlray.images.sandbox import DecoderProcess
from tlray.models.model import Model, compiled

_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True, kw_only=True)
class PredictResult(InferenceCounts):
    """The result of a prediction of many images."""

    out: str
    """The URI of the file of predictions."""
    first_errors: list[ImageError]
    """The first three error rows, in the order of the listing."""
    errors_uri: str | None
    """The file with all error rows; None if there are none."""


@dataclass(frozen=True, kw_only=True)
class Prediction(InferenceCounts):
    """The prediction of one image, with the values of a row of the file."""

    path: str
    split: str | None
    label: str | None
    """The true class, if it is known."""
    predicted: str
    """The most probable class."""
    probability: float
    """The probability of that class, from 0 to 1."""
    probabilities: dict[str, float]
    """The probability of each class, the most probable first; with `top` only those."""


@overload
def predict(
    model: StrPath,
    images: StrPath,
    out: StrPath,
    config: PredictConfig | None = None,
    *,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
    **settings: Any,
) -> PredictResult: ...
@overload
def predict(
    model: StrPath, images: StrPath, out: None = None, config: PredictConfig | None = None, **settings: Any
) -> Prediction: ...
def predict(
    model: StrPath,
    images: StrPath,
    out: StrPath | None = None,
    config: PredictConfig | None = None,
    *,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
    **settings: Any,
) -> PredictResult | Prediction:
    """Predict the class of every image, into one Parquet or CSV file; or of one image, without a file.

    The columns are path, split, label (the true class, null if it is not known), predicted (the most probable
    class) and probability; then probability_CLASS for each class, or with `top` predicted_1, probability_1,
    predicted_2, and so on. A second file, OUT with ".errors" before the suffix, lists the images that cannot
    be decoded. The folder OUT.parts and the file OUT.parts.json hold work in progress.

    Args:
        model: the folder or URI of the model.
        images: a folder, URI, table or image, as `tlray.images.listing.Images` takes it.
        out: the file, which ends with .parquet or .csv; None predicts a single image, without Ray.
        config: the settings of the prediction.
        address: the address of a running Ray; None starts a local Ray and stops it at the end.
        progress: called after each shard with the images done and to do.
        settings: single fields of `config`, e.g. `top=5`.

    Raises:
        UserError: the job cannot be done; nothing was written.
        JobError: the job failed; run it again to continue.
    """
    config = configured(PredictConfig, config, settings)
    trained, uri = Model.open(model), os.fspath(images)
    if out is not None:
        return _predict_all(trained, uri, os.fspath(out), config, address, progress)
    if not is_image(uri) or os.path.isdir(uri):
        raise UserError("--out is missing: expected a .parquet or .csv file to write the predictions to")
    try:
        return _predict_one(trained, uri, config)
    except BadImage as bad:
        raise JobError(f"{uri}: {bad.message} ({bad.error})") from bad


@dataclass(frozen=True)
class _Output:
    """The files of a prediction. A file that exists before belongs to the user, and is never touched."""

    folder: Folder
    name: str
    errors: str
    begun: str
    """This file exists while the other files are written and the parts are removed."""
    parts: Folder
    job: dict[str, Any]
    """The settings on which the predictions depend."""

    @classmethod
    def open(cls, out: str, job: dict[str, Any]) -> _Output:
        if not out.endswith(_SUFFIXES):
            raise UserError(f"--out {out}: expected a file name that ends with {' or '.join(_SUFFIXES)}")
        parent, slash, name = out.rpartition("/")
        folder = Folder.open(parent + slash)
        stem, _, suffix = name.rpartition(".")
        errors, begun = f"{stem}.errors.{suffix}", f"{name}.parts.json"
        return cls(folder, name, errors, begun, folder.child(f"{name}.parts"), job)

    def finished(self) -> PredictResult | None:
        """The result of this job if its files are written; UserError if others are in their place."""
        if self.folder.is_file(self.begun):
            with suppress(ValueError, KeyError, TypeError):
                values = json.loads(self.folder.read(self.begun))
                if values["job"] == plain(self.job):
                    # The file of predictions is written last.
                    is_written = self.folder.is_file(self.name)
                    return PredictResult.from_json(values["result"]) if is_written else None
        for place in map(self.folder.child, (self.name, self.errors, self.begun)):
            if place.exists():
                raise UserError(f"{place.uri} already exists: choose another --out, or remove it")
        return None


def _predict_all(
    model: Model,
    images: str,
    out: str,
    config: PredictConfig,
    address: str | None,
    progress: inference.Progress,
) -> PredictResult:
    source = model_inference.images_of(model, images, config)
    settings = ("precision", "max_pixels", "top", "annotate", "path_column", "label_column", "split_column")
    job = {
        **model.identity,
        "images": Folder.open(images).uri + (f" ({config.split})" if config.split is not None else ""),
        **{name: getattr(config, name) for name in settings},
    }
    output = _Output.open(out, job)
    source.check_outside(output.folder.child(output.name))
    chosen: Iterable[Listed] = (image for image in source if config.split in (None, image.split))
    if output.finished() is None:
        if config.annotate is not None:
            annotate.check_target(source, Folder.open(config.annotate), model)
        if config.split is not None:
            model_inference.check_split(config.split, {image.split for image in source}, images)
        chosen = listing_for(output.parts, chosen)
    with output.parts.locked():
        if (result := output.finished()) is None:
            result = _run(model, source, chosen, output, config, address, progress)
        inference.remove(output.parts)
        output.folder.remove(output.begun)
    return result


def _run(
    model: Model,
    source: Images,
    chosen: Iterable[Listed],
    output: _Output,
    config: PredictConfig,
    address: str | None,
    progress: inference.Progress,
) -> PredictResult:
    """Predict, and write all files; the caller has locked the folder of the parts."""
    started = time.monotonic()
    job, timings, errors = model_inference.run(
        model, source.root, chosen, output.job["images"], output.parts, config, progress, address
    )
    if errors.num_rows == job.index.images:
        raise JobError(
            f"none of these {errors.num_rows} images can be decoded: see {output.parts.uri}/errors"
        )
    if config.annotate is not None:
        target = Folder.open(config.annotate)
        annotate.check_target(source, target, model, begin=True)
        annotate.annotate(job, target, address=address)
    result = PredictResult(
        **vars(inference.counts(job, timings, errors, time.monotonic() - started)),
        out=output.folder.child(output.name).uri,
        first_errors=part_files.first_errors(errors),
        errors_uri=output.folder.child(output.errors).uri if errors.num_rows else None,
    )
    output.finished()  # A file may have come into the way since this job began.
    output.folder.write(output.begun, dump({"job": output.job, "result": result}).encode())
    if errors.num_rows:
        _write(output.folder, output.errors, [errors], model)
    tables = (_columns(table, model.classes, config.top) for table in part_files.read_parts(job.index))
    _write(output.folder, output.name, tables, model)
    return result


def _predict_one(model: Model, uri: str, config: PredictConfig) -> Prediction:
    started = time.monotonic()
    source = Images.open(uri)
    (image,) = source
    target = Folder.open(config.annotate) if config.annotate is not None else None
    if target is not None:
        annotate.check_target(source, target, model)
    size = model.provenance.image_size
    with ImageLoader(source.root, size, config.max_pixels, config.seconds_per_image) as load:
        pixels = load(image.place)
    # float32 starts fastest, which is what counts for a single image.
    precision = "float32" if config.precision == "auto" else config.precision
    network = compiled(model.load(), size, precision)
    (probabilities,) = network(pixels[None])
    model.check_output(probabilities, image.path)
    order = np.argsort(-probabilities, kind="stable")[: config.top]
    ranked = {model.classes[index]: float(probabilities[index]) for index in order}
    predicted, probability = next(iter(ranked.items()))
    if target is not None:
        annotate.check_target(source, target, model, begin=True)
        with DecoderProcess(config.seconds_per_image) as run:
            annotate.annotate_one(
                Reader(source.root), run, image.path, predicted, probability, target, config.max_pixels
            )
    seconds = time.monotonic() - started
    return Prediction(
        images=1,
        rows=1,
        errors=0,
        seconds=round(seconds, 3),
        images_per_second=round(1 / seconds, 3),
        limited_by="startup",
        time=None,
        path=image.path,
        split=image.split,
        label=image.label,
        predicted=predicted,
        probability=probability,
        probabilities=ranked,
    )


def _columns(table: pa.Table, classes: list[str], top: int | None) -> pa.Table:
    """Turn rows of a part file into rows of the predictions."""
    names, probabilities = np.array(classes, object), feature_set.Rows.of(table).features
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    columns = {name: table[name] for name in ("path", "split", "label")}
    columns |= {"predicted": pa.array(names[order[:, 0]], pa.string()), "probability": ranked[:, 0]}
    if top is None:
        columns |= {f"probability_{name}": probabilities[:, index] for index, name in enumerate(classes)}
    else:
        for rank in range(min(top, len(classes))):
            columns[f"predicted_{rank + 1}"] = pa.array(names[order[:, rank]], pa.string())
            columns[f"probability_{rank + 1}"] = ranked[:, rank]
    return pa.table(columns)


def _write(target: Folder, name: str, tables: Iterable[pa.Table], model: Model) -> None:
    """Write tables, one after the other, as one Parquet or CSV file."""
    rows = iter(tables)
    first = next(rows)
    values = {"model": model.folder.uri, "classes": model.classes, "provenance": model.provenance.to_json()}
    schema = first.schema.with_metadata(stamp(values))
    kind = pa.csv.CSVWriter if name.endswith(".csv") else parquet.writer
    with target.writing(name) as stream, kind(stream, schema) as writer:
        for table in chain([first], rows):
            writer.write_table(table)
