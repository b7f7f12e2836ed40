"""The predict job: a model and any number of images in, one table of classes and probabilities out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tlray.cluster import session
from tlray.core.config import PredictConfig
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import stamp
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.evaluation import annotate, model_inference
from tlray.features import bottleneck, feature_set, inference
from tlray.images.bad_image import BadImage
from tlray.images.listing import Images, Listed
from tlray.images.loader import ImageLoader
from tlray.images.reader import Reader
from tlray.images.sandbox import DecoderProcess
from tlray.models.compiled import compile_network
from tlray.models.model import NETWORK, Model, load, without_resize

SUFFIXES = (".parquet", ".csv")


def predict(
    model: str,
    images: str,
    out: str,
    config: PredictConfig,
    *,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Predict the class of every image, into one Parquet or CSV file.

    Its columns are path, label (the most probable class), probability, and then probability_CLASS for
    each class, or with `top` label_1, probability_1, label_2, ... Images that cannot be decoded go
    to a second file, OUT with ".errors" before the suffix. Work in progress lies in OUT.parts.

    Args:
        model: a model's folder or URI.
        images: a folder, URI, table or image; see `tlray.images.listing.Images`.
        out: the file, ending in .parquet or .csv.
        config: how to predict.
        address: of a running Ray; without it a local one is started and stopped.
        progress: called after each shard.

    Returns:
        JSON values: out, and what `inference.counts` says.

    Raises:
        UserError: the job cannot be; nothing was written.
        JobError: the job failed; run it again to go on.
    """
    started = time.monotonic()
    trained = Model.open(model)
    source = model_inference.images_of(trained, images)
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
    with parts.locked():
        with session.connect(address) as connected:
            work = model_inference.start(trained, source.root, chosen, what, parts, config)
            done = model_inference.run(work, trained, progress, connected)
            errors = inference.reconcile(work)
        if errors.num_rows == work.index.images:
            raise JobError(f"none of these {errors.num_rows} images can be decoded: see {parts.uri}/errors")
        if config.annotate is not None:
            annotate.annotate(work, Folder.open(config.annotate), address=address)
        columns = _columns(trained.classes, config.top)
        _write(target, name, map(columns, model_inference.tables(work)), trained)
        stem, _, suffix = name.rpartition(".")
        target.remove(f"{stem}.errors.{suffix}")  # of an earlier job of that name
        if errors.num_rows:
            _write(target, f"{stem}.errors.{suffix}", [errors], trained)
        parts.remove()
    return {"out": place.uri, **inference.counts(work, done, errors, time.monotonic() - started)}


def predict_one(model: str, image: str, config: PredictConfig) -> dict[str, Any]:
    """Predict one image, in this process, without Ray.

    Returns:
        JSON values: path, label, probability, probabilities (by class, the most probable first),
        and the same counts as `predict`.

    Raises:
        UserError: there is no such model or image.
        JobError: the image cannot be decoded.
    """
    started = time.monotonic()
    trained = Model.open(model)
    source = Images.open(image)
    (listed,) = source
    if config.annotate is not None:
        annotate.check_target(source.root, Folder.open(config.annotate))
    size = trained.provenance.image_size
    with _naming(image), ImageLoader(source.root, size, config.max_pixels) as load_image:
        pixels = load_image(listed.place)
    prepare_keras()
    # For one image the precision that takes least to start is the fastest.
    precision = "float32" if config.precision == "auto" else config.precision
    network = compile_network(without_resize(load(trained.folder.read(NETWORK)), size), size, precision)
    (probabilities,) = network(pixels[None])
    order = np.argsort(-probabilities, kind="stable")[: config.top]
    ranked = {trained.classes[index]: float(probabilities[index]) for index in order}
    label, probability = next(iter(ranked.items()))
    if config.annotate is not None:
        target = Folder.open(config.annotate)
        with _naming(image), DecoderProcess() as run:
            annotate.annotate_one(
                Reader(source.root), run, listed.path, label, probability, target, config.max_pixels
            )
    seconds = time.monotonic() - started
    return {
        "path": image,
        "label": label,
        "probability": probability,
        "probabilities": ranked,
        "images": 1,
        "rows": 1,
        "errors": 0,
        "seconds": round(seconds, 3),
        "images_per_second": round(1 / seconds, 3),
        **bottleneck.judge([]),
    }


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
            "label": pa.array(names[order[:, 0]], pa.string()),
            "probability": best[:, 0],
        }
        if top is None:
            found |= {f"probability_{name}": probabilities[:, index] for index, name in enumerate(classes)}
        else:
            for rank in range(min(top, len(classes))):
                found[f"label_{rank + 1}"] = pa.array(names[order[:, rank]], pa.string())
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
