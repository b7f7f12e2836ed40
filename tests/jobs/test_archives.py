"""Jobs on images in tar files and Parquet files, on disks and in buckets: as on files of their own."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import GREY
from tests.support.archives import hugging_face, write_parquet, write_tar
from tests.support.outputs import read, same
from tests.support.s3_server import Server
from tlray.core.config import EvaluateConfig
from tlray.core.storage import Folder
from tlray.evaluation.evaluate import _thumbnails
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.features.plan import plan
from tlray.features.verify import verify
from tlray.images.index_diff import Changes
from tlray.images.listing import Images
from tlray.images.reader import Reader
from tlray.training.fit import fit

CONFIG = replace(GREY, max_bad_fraction=0.1)
KINDS = ("loose", "tar", "parquet")
BAD = {"a/1.png": b"no image", "a/2.png": b""}


def write(folder: Path, kind: str, pictures: dict[str, bytes]) -> dict[str, str]:
    """Write pictures as loose files or into an archive; return the path of each image, and its picture's."""
    if kind == "tar":
        write_tar(folder / "some.tar", pictures.items())
        return {f"some.tar/{name}": name for name in pictures}
    if kind == "parquet":
        labels = ["abc".index(name[0]) for name in pictures]
        hugging_face(folder / "some.parquet", list(pictures.values()), labels, [*"abc"])
        return {f"some.parquet#{row}": name for row, name in enumerate(pictures)}
    for name, data in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return {name: name for name in pictures}


@pytest.fixture(scope="module")
def mixed(pictures, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A third of the pictures as files, in a tar file and in a Parquet file each, and two bad ones."""
    folder, names = tmp_path_factory.mktemp("mixed"), list(pictures)
    paths = {}
    for third, kind in enumerate(KINDS):
        paths |= write(folder, kind, {name: pictures[name] for name in names[50 * third : 50 * third + 50]})
    write_tar(folder / "bad.tar", BAD.items())
    return folder, paths


def test_features_are_those_of_loose_files_and_later_ones_are_added(mixed, pictures, grey, ray, tmp_path):
    folder, names = shutil.copytree(mixed[0], tmp_path / "images"), mixed[1]
    out, loose = tmp_path / "set", read(grey / "set")
    result = extract(folder, out, CONFIG)
    assert (result.images, result.rows, result.errors) == (152, 150, 2)
    assert same(read(out), {path: loose[name] for path, name in names.items()})
    table = pq.read_table(list(map(str, out.glob("part-*.parquet"))), columns=["path", "label"])
    labels = zip(*table.to_pydict().values(), strict=True)
    assert dict(labels) == {path: name[0] for path, name in names.items()}
    errors = pq.read_table(out / "errors").sort_by("path").to_pylist()
    assert [(row["path"], row["label"], row["error"]) for row in errors] == [
        ("bad.tar/a/1.png", "a", "NotAnImage"),
        ("bad.tar/a/2.png", "a", "EmptyFile"),
    ]
    assert verify(out, folder, sample=40).largest_error < 1e-6
    planned = plan(folder, CONFIG, sample=30)
    assert (planned.images, planned.bytes_read > 0) == (152, True)
    # A tar file that is new, and one that was written anew with a picture more.
    write_tar(folder / "later.tar", [("c/9.png", pictures["c/002.png"])])
    write_tar(folder / "bad.tar", [*BAD.items(), ("a/3.png", pictures["a/000.png"])])
    result = extract(folder, out, CONFIG, extend=True)
    paths = ["bad.tar/a/1.png", "bad.tar/a/2.png"]
    assert (result.images, result.changes) == (154, Changes(added=2, replaced=2, replaced_paths=paths))
    added = {"later.tar/c/9.png": loose["c/002.png"], "bad.tar/a/3.png": loose["a/000.png"]}
    assert same({path: read(out)[path] for path in added}, added)


def test_predictions_and_copies_of_archives(mixed, grey, ray, tmp_path):
    folder, names = mixed
    model, copies, out = tmp_path / "model", tmp_path / "copies", tmp_path / "p.parquet"
    fit(grey / "set", model, head="linear", optimizer="adam", epochs=60, learning_rate=0.02)
    predict(model, folder, out, precision="float32", annotate=str(copies), max_bad_fraction=0.1)
    rows = pq.read_table(out, columns=["path", "predicted"]).to_pydict()
    assert sorted(rows["path"]) == sorted(names)
    assert np.mean([names[path][0] == label for path, label in zip(*rows.values(), strict=True)]) > 0.9
    top = {path.relative_to(copies).parts[0] for path in copies.rglob("*.png")}
    assert top == {"a", "b", "c", "some.tar", "some.parquet"}
    assert len(list(copies.glob("some.parquet/7.*.png"))) == 1


# Object stores


def upload(server: Server, folder: Path, place: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    server.put((f"{place}/{path.relative_to(folder)}", path.read_bytes()) for path in files)


def test_archives_in_a_bucket_are_read_with_few_requests(server, tmp_path):
    data = np.random.default_rng(0).bytes(50_000)
    write_tar(tmp_path / "a.tar", [(f"{number:03d}.jpg", data[number:]) for number in range(300)])
    write_parquet(tmp_path / "b.parquet", 100, image=[data[number:] for number in range(300)])
    upload(server, tmp_path, "bucket/few")
    server.requests()
    images = list(Images.open("s3://bucket/few"))
    assert len(images) == 600
    listed = server.requests()
    assert len([asked for asked in listed if "a.tar" in asked]) <= 10
    assert len([asked for asked in listed if "b.parquet" in asked]) <= 4
    read = Reader(Images.open("s3://bucket/few").root)
    server.requests()
    for row in images[100:228] + images[400:528]:
        assert read(row.path, row.offset, row.modified) == data[int(re.findall(r"\d+", row.path)[0]) :]
    asked = server.requests()
    for name in ("a.tar", "b.parquet"):
        # After each answer, a request asks whether the file is still the same.
        assert len([request for request in asked if name in request]) <= 14


def test_features_from_a_bucket_with_faults_are_those_of_loose_files(mixed, grey, ray, server, tmp_path):
    upload(server, mixed[0], "bucket/mixed")
    with server.failing("500", "503", "reset", "cut", fraction=0.2, seed=3):
        result = extract("s3://bucket/mixed", tmp_path / "set", CONFIG)
    assert (result.images, result.rows, result.errors) == (152, 150, 2)
    loose = read(grey / "set")
    assert same(read(tmp_path / "set"), {path: loose[name] for path, name in mixed[1].items()})


def test_thumbnails_come_out_of_archives(tmp_path, pictures):
    for kind in KINDS:
        paths = write(tmp_path, kind, dict(list(pictures.items())[:3]))
        thumbnails = _thumbnails(Folder.open(tmp_path), [*paths, "some.tar/none.png"], EvaluateConfig())
        assert sorted(thumbnails) == sorted(paths)
