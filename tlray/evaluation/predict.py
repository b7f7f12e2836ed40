"""The predict job: a model and any number of images in, one table of classes and probabilities out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tlray.cluster import session
from tlray.core.config import PredictConfig
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import stamp
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
from tlray.models.compiled import compile_network
from tlray.models.model import Model, without_resize

SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True, kw_only=True)
class PredictResult(InferenceCounts):
    """What a prediction of many images has made."""

    out: str
    """The URI of the file of predictions."""
    first_errors: list[ImageError]
    """The first three error rows, in the order of the listing."""
    errors_uri: str | None
    """The file with all error rows; None if there are none."""


@dataclass(frozen=True, kw_only=True)
class Prediction(InferenceCounts):
    """The prediction of one image, with the values that a row of the file has."""

    path: str
    split: str | None
    label: str | None
    """The true class, if it is known."""
    predicted: str
    """The most probable class."""
    probability: float
    """Of that class."""
    probabilities: dict[str, float]
    """By class, the most probable first; with `top` only so many."""


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
    model: StrPath,
    images: StrPath,
    out: None = None,
    config: PredictConfig | None = None,
    *,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
    **settings: Any,
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
    predicted_2, and so on. Images that cannot be decoded go to a second file, OUT with ".errors" before the
    suffix. Work in progress lies in OUT.parts.

    Args:
        model: a model's folder or URI.
        images: a folder, URI, table or image; see `tlray.images.listing.Images`.
        out: the file, ending in .parquet or .csv; without it `images` is one image, which is predicted in
            this process, without Ray.
        config: how to predict.
        address: of a running Ray; without it a local one is started and stopped.
        progress: called after each shard with the images done and to do.
        settings: single fields of `config`, e.g. `top=5`.

    Raises:
        UserError: the job cannot be done; nothing was written.
        JobError: the job failed; run it again to go on.
    """
    config = configured(PredictConfig, config, settings)
    trained, uri = Model.open(model), os.fspath(images)
    if out is not None:
        return _predict_all(trained, uri, os.fspath(out), config, address, progress)
    if not is_image(uri) or os.path.isdir(uri):
        raise UserError("--out is missing: expected a .parquet or .csv file to write the predictions to")
    return _predict_one(trained, uri, config)


def _predict_all(
    model: Model,
    images: str,
    out: str,
    config: PredictConfig,
    address: str | None,
    progress: inference.Progress,
) -> PredictResult:
    started = time.monotonic()
    source = model_inference.images_of(model, images)
    if not out.endswith(SUFFIXES):
        raise UserError(f"--out {out}: expected a file name ending in {' or '.join(SUFFIXES)}")
    place = Folder.open(out)
    folder, _, name = place.path.rpartition("/")
    target = Folder(place.filesystem, folder or "/", place.uri.rpartition("/")[0])
    parts = target.child(f"{name}.parts")
    if target.exists(name) and not parts.exists():
        raise UserError(f"--out {out} is there already: choose another name, or remove it")
    if config.annotate is not None:
        annotate.check_target(source.root, Folder.open(config.annotate))
    what = Folder.open(images).uri
    chosen: Iterable[Listed] = source
    if config.split is not None:
        what = f"{what} ({config.split})"
        chosen = (image for image in source if image.split == config.split)
        if config.split not in (splits := {image.split for image in source}):
            there = ", ".join(sorted(filter(None, splits))) or "no splits"
            raise UserError(f"--split {config.split}: {images} has no such split: it has {there}")
    stem, _, suffix = name.rpartition(".")
    error_file = f"{stem}.errors.{suffix}"
    chosen = listing_for(parts, chosen)
    with parts.locked():
        with session.connect(address) as connected:
            work, done = model_inference.run(
                model, source.root, chosen, what, parts, config, progress, connected
            )
            errors = inference.reconcile(work)
        if errors.num_rows == work.index.images:
            raise JobError(f"none of these {errors.num_rows} images can be decoded: see {parts.uri}/errors")
        if config.annotate is not None:
            annotate.annotate(work, Folder.open(config.annotate), address=address)
        columns = _columns(model.classes, config.top)
        _write(target, name, map(columns, model_inference.tables(work)), model)
        target.remove(error_file)  # An earlier job of that name may have left one.
        if errors.num_rows:
            _write(target, error_file, [errors], model)
        parts.remove()
    counts = inference.counts(work, done, errors, time.monotonic() - started)
    return PredictResult(
        **vars(counts),
        out=place.uri,
        first_errors=part_files.first_errors(errors),
        errors_uri=target.child(error_file).uri if errors.num_rows else None,
    )


def _predict_one(model: Model, uri: str, config: PredictConfig) -> Prediction:
    started = time.monotonic()
    source = Images.open(uri)
    (image,) = source
    if config.annotate is not None:
        annotate.check_target(source.root, Folder.open(config.annotate))
    size = model.provenance.image_size
    with _naming(uri), ImageLoader(source.root, size, config.max_pixels) as load:
        pixels = load(image.place)
    # float32 starts fastest, which is what counts for a single image.
    precision = "float32" if config.precision == "auto" else config.precision
    network = compile_network(without_resize(model.load(), size), size, precision)
    (probabilities,) = network(pixels[None])
    order = np.argsort(-probabilities, kind="stable")[: config.top]
    ranked = {model.classes[index]: float(probabilities[index]) for index in order}
    predicted, probability = next(iter(ranked.items()))
    if config.annotate is not None:
        target = Folder.open(config.annotate)
        with _naming(uri), DecoderProcess() as run:
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


@contextmanager
def _naming(image: str) -> Iterator[None]:
    """A bad image becomes a JobError that names it."""
    try:
        yield
    except BadImage as bad:
        raise JobError(f"{image}: {bad.message} ({bad.error})") from bad


def _columns(classes: list[str], top: int | None) -> Callable[[pa.Table], pa.Table]:
    """From rows of a part file to rows of the predictions."""
    names = np.array(classes, object)

    def columns(table: pa.Table) -> pa.Table:
        probabilities: npt.NDArray[np.float32] = feature_set.Rows.of(table).features
        order = np.argsort(-probabilities, axis=1, kind="stable")
        best = np.take_along_axis(probabilities, order, axis=1)
        found = {
            "path": table["path"],
            "split": table["split"],
            "label": table["label"],
            "predicted": pa.array(names[order[:, 0]], pa.string()),
            "probability": best[:, 0],
        }
        if top is None:
            found |= {f"probability_{name}": probabilities[:, index] for index, name in enumerate(classes)}
        else:
            for rank in range(min(top, len(classes))):
                found[f"predicted_{rank + 1}"] = pa.array(names[order[:, rank]], pa.string())
                found[f"probability_{rank + 1}"] = best[:, rank]
        return pa.table(found)

    return columns


def _write(target: Folder, name: str, tables: Iterable[pa.Table], model: Model) -> None:
    """Write tables, one after the other, as one Parquet or CSV file."""
    rows = iter(tables)
    first = next(rows)
    values = {"model": model.folder.uri, "classes": model.classes, "provenance": model.provenance.to_json()}
    with (
        target.writing(name) as stream,
        _writer(stream, name, first.schema.with_metadata(stamp(values))) as writer,
    ):
        writer.write_table(first.replace_schema_metadata(stamp(values)))
        for table in rows:
            writer.write_table(table.replace_schema_metadata(stamp(values)))


def _writer(stream: IO[bytes], name: str, schema: pa.Schema) -> Any:
    if name.endswith(".csv"):
        return pa.csv.CSVWriter(stream, schema)
    return pq.ParquetWriter(stream, schema, compression="zstd")
