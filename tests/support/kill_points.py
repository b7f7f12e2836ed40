"""Kills a job before each change that it makes to the disk, and runs it again after each of these kills.

Run as a module with the name of a job, an empty folder, and the distance between the kills. Each run is a
child process; a killed one gets no chance to tidy up. Inference and training are replaced by something quick:
neither Ray nor TensorFlow is needed.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import jinja2  # noqa: F401 - No child needs to import these.
import numpy as np
import pyarrow as pa
import sklearn.metrics  # noqa: F401

from tests.support.manifests import model_json
from tests.support.numpy_network import installed
from tlray.cluster import session
from tlray.core.errors import TlrayError
from tlray.core.storage import Folder
from tlray.evaluation import evaluate, plots, predict
from tlray.features import extract, inference, part_files
from tlray.features.inference_tasks import InferenceJob
from tlray.images.index_writer import IndexWriter
from tlray.training import fit, train
from tlray.training.worker.task import Trained

KILLED = 9
RECIPE = """
title = "all commands"
command = "tlray run"
[stages.features]
command = "extract"
backbone = "grey-pixels"
image-size = 2
max-bad-fraction = 1.0
[stages.model]
command = "fit"
features = "features"
epochs = 1
[stages.scores]
command = "evaluate"
model = "model"
max-bad-fraction = 1.0
[stages.predictions]
command = "predict"
model = "model"
max-bad-fraction = 1.0
"""


def infer(job: InferenceJob, writer: IndexWriter, *_: object) -> list[Any]:
    """In place of Ray: the label of an image is known by its path, and files without content are bad."""
    writer.finish()
    done = {shard for name in job.out.names() if (shard := part_files.shard_of(name)) is not None}
    for table in job.index.shards(done):
        shard = table["shard"][0].as_py()
        good = np.array([size > 0 for size in table["size"].to_pylist()])
        rows = table.select(["path", "split", "label"])
        errors = rows.filter(pa.array(~good))
        for name in ("stage", "error", "message"):
            errors = errors.append_column(name, pa.array(["bad"] * errors.num_rows, pa.string()))
        part_files.write_errors(job.out, shard, errors, job.metadata)
        rows = rows.filter(pa.array(good))
        values = np.array(
            [[0.9, 0.1] if path.startswith("a/") else [0.1, 0.9] for path in rows["path"].to_pylist()]
        )
        part_files.write_part(
            job.out, shard, rows, iter([values.astype(np.float32)]), [2], job.store, job.metadata
        )
    return []


def learn(task: Any, work: Folder, report: object) -> Trained:
    """In place of Keras; it leaves files of a checkpoint and of a feature cache."""
    for name in ("checkpoint.zip", "training/index/part-00000.parquet", "training/part-00000.parquet"):
        work.write(name, b"work")
    counts = dict.fromkeys(("trainable_tensors", "tensors", "trainable_parameters", "parameters"), 2)
    return Trained(
        {"model.keras": b"network"}, [{"epoch": 1, "loss": 0.5, "accuracy": 1.0}], counts, 0.1, 0.1
    )


def kill_before(number: int) -> None:
    """End this process before its n-th change of the disk; a folder is removed file by file."""
    changes = count(1)

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if next(changes) == number:
                os._exit(KILLED)
            return change(*given, **named)

        return call

    os.replace, unlink, rmdir = counted(os.replace), counted(os.unlink), counted(os.rmdir)

    def remove(folder: Folder, name: str = "") -> None:
        path = Path(folder.join(name) if name else folder.path)
        if path.is_dir():
            for inner in sorted(path.iterdir()):
                remove(folder, str(inner))
            rmdir(path)
        elif path.exists():
            unlink(path)

    Folder.remove = remove  # type: ignore[method-assign]


def child(number: int, job: Callable[[], Any]) -> Any:
    """The job's values in a child process that is killed before its n-th change; None if it was."""
    receiving, sending = os.pipe()
    if not (process := os.fork()):
        kill_before(number)
        try:
            answer = job()
        except TlrayError as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(sending, json.dumps(answer).encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(process, 0)
    return None if os.waitstatus_to_exitcode(status) == KILLED else json.loads(answer)


def files(folder: Path) -> dict[str, str | None]:
    """The files and folders but temporary ones, with the content of the predictions as a digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.match("p*.parquet") and path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(".tmp")
    }


def jobs(folder: Path) -> dict[str, Callable[[], Any]]:
    images, model, out = folder / "images", folder / "given", folder / "out"
    counted = ("images", "rows", "errors", "accuracy", "confusion_matrix", "first_errors", "errors_uri")

    def numbers(result: Any) -> dict[str, Any]:
        values = result.to_json()
        return {name: values[name] for name in counted if name in values}

    def run() -> Any:
        from tlray.recipes import recipe

        return [
            numbers(stage.result) if stage.result else None
            for stage in recipe.run(folder / "recipe.toml", images, out).stages
        ]

    return {
        "predict": lambda: numbers(predict.predict(model, images, out / "p.parquet", max_bad_fraction=1)),
        "evaluate": lambda: numbers(evaluate.evaluate(model, images, out=out / "report", max_bad_fraction=1)),
        "fit": lambda: numbers(fit.fit(folder / "features", out / "model", epochs=1)),
        "run": run,
    }


@contextmanager
def nothing(*_: object, **__: object) -> Iterator[Callable[[], None]]:
    yield lambda: None


def prepare(folder: Path, replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Write images and a model, and replace what takes long."""
    replace(session, "connect", nothing)
    replace(session, "import_ahead", lambda address: None)
    replace(session, "has_gpus", lambda: False)
    replace(inference, "run", infer)
    replace(train, "_train_here", learn)
    for name in ("confusion", "curves", "prepare_matplotlib"):
        replace(plots, name, lambda *_, **__: b"plot")
    for number in range(6):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(b"image" * (number != 3))
    (folder / "recipe.toml").write_text(RECIPE)
    Folder.open(folder / "given").write("manifest.json", json.dumps(model_json()).encode())
    Folder.open(folder / "given").write("model.keras", b"network")


def main(name: str, folder: Path, step: int) -> None:
    prepare(folder)
    job = jobs(folder)[name]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with installed():
        if name == "fit":
            extract.extract(
                folder / "images",
                folder / "features",
                backbone="grey-pixels",
                image_size=2,
                max_bad_fraction=1,
            )
        for number in count(1, step):
            out = folder / "out"
            first = child(number, job)
            again = child(0, job) if first is None else first
            print(json.dumps([number, again, files(out)]))
            if first is not None:
                return
            os.rename(out, folder / f"out-{number}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
