"""Remote storage: all jobs over s3://, against a real server on loopback, which also fails as it is told."""

import json
import pickle
import re
import signal
import subprocess
import sys
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from tests import ROOT
from tests.jobs.conftest import GREY
from tests.support import kill_points
from tests.support.archives import write_parquet, write_tar
from tests.support.outputs import Features, read, same
from tests.support.processes import wait_for
from tests.support.s3_server import Server
from tlray.core.checked_file import StorageError
from tlray.core.errors import JobError, TlrayError, UserError
from tlray.core.storage import Folder
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.images.bad_image import BadImage
from tlray.images.index_diff import Changes
from tlray.images.listing import Images, Listed
from tlray.images.reader import Reader
from tlray.training.fit import fit

IMAGES = 150


@pytest.fixture(scope="module")
def images(server, pictures) -> None:
    """The pictures at s3://bucket/images."""
    server.put((f"bucket/images/{name}", data) for name, data in pictures.items())


@pytest.fixture(scope="module")
def local(grey) -> Features:
    """The features of a run on local files."""
    return read(grey / "set")


@pytest.fixture(scope="module")
def features(images, ray) -> str:
    extract("s3://bucket/images", "s3://bucket/features", GREY)
    return "s3://bucket/features"


@pytest.fixture(scope="module")
def model(features) -> str:
    fit(features, "s3://bucket/model", head="linear", epochs=12, learning_rate=0.05)
    return "s3://bucket/model"


def files(server: Server, folder: str) -> list[str]:
    """All objects below a folder; the markers of folders left out."""
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    infos = server.filesystem().get_file_info(selector)
    return sorted(info.path[len(folder) + 1 :] for info in infos if info.is_file)


# The jobs


def test_features_in_a_bucket_are_those_of_a_local_run(features, local, server):
    assert same(read("bucket/features", server.filesystem()), local)
    assert len(local) == IMAGES
    assert files(server, "bucket/features") == [
        *("errors/part-00000.parquet", "index/part-00000.parquet", "manifest.json"),
        *("part-00000.parquet", "part-00001.parquet"),
    ]
    manifest = json.loads(Folder.open(features).read("manifest.json"))
    assert (manifest["images"], manifest["rows"], manifest["errors"]) == (IMAGES, IMAGES, 0)
    assert manifest["classes"] == ["a", "b", "c"]
    index = pq.read_table("bucket/features/index", filesystem=server.filesystem())
    assert sorted(index["path"].to_pylist()) == sorted(local)
    assert index["size"].null_count == index["modified"].null_count == 0


def test_a_finished_set_is_recognised_and_what_is_lost_is_done_again(features, local, server):
    server.requests()
    assert extract("s3://bucket/images", features, GREY).was_complete
    asked = server.requests()
    assert {request.split()[0] for request in asked} <= {"GET", "HEAD"}
    assert not [request for request in asked if ".png" in request]
    with pytest.raises(UserError, match="holds another job"):
        extract("s3://bucket/images", features, backbone="grey-pixels", image_size=9)
    for name in ("part-00001.parquet", "manifest.json"):
        server.filesystem().delete_file(f"bucket/features/{name}")
    server.requests()
    extract("s3://bucket/images", features, GREY)
    asked = server.requests()
    written = {request.split()[1].partition("?")[0] for request in asked if request.startswith("POST")}
    assert written == {f"/bucket/features/{name}" for name in ("part-00001.parquet", "manifest.json")}
    assert len([request for request in asked if request.startswith("GET /bucket/images/")]) == 22
    assert same(read("bucket/features", server.filesystem()), local)


def test_a_model_in_a_bucket_predicts_images_in_a_bucket(model, pictures, server):
    assert {"model.keras", "manifest.json", "history.csv"} <= set(files(server, "bucket/model"))
    assert not [name for name in files(server, "bucket/model") if name.startswith(".training")]
    out = "s3://bucket/deep/er/predictions.parquet"
    result = predict(model, "s3://bucket/images", out, precision="float32")
    assert (result.images, result.rows, result.errors) == (IMAGES, IMAGES, 0)
    table = pq.read_table("bucket/deep/er/predictions.parquet", filesystem=server.filesystem())
    assert sorted(table["path"].to_pylist()) == sorted(pictures)
    rows = zip(*table.select(["path", "predicted"]).to_pydict().values(), strict=True)
    assert np.mean([path[0] == predicted for path, predicted in rows]) > 0.9
    assert files(server, "bucket/deep") == ["er/predictions.parquet"]


def test_what_fails_is_tried_again_and_what_never_comes_stops_the_job(images, local, ray, server):
    kinds, out = ("500", "503", "reset", "cut", "slow"), "s3://bucket/faulty"
    with (
        server.failing("500", method="GET", url="/images/b/004.png", times=0),
        pytest.raises(JobError, match=r"cannot read bucket/images/b/004.png now: .*INTERNAL_FAILURE"),
    ):
        extract("s3://bucket/images/b", out, GREY)
    # The request is given up in the end, and nothing is decided about the image.
    asked = [request for request in server.requests() if request.startswith("GET /bucket/images/b/004.png")]
    assert 3 < len(asked) < 40
    assert [name for name in files(server, "bucket/faulty") if "part" in name] == ["index/part-00000.parquet"]
    with (
        server.failing("503", method="GET", url="/images/b/007.png", times=5),
        server.failing(*kinds, fraction=0.2, seed=1),
    ):
        result = extract("s3://bucket/images/b", out, GREY)
    asked = server.requests()
    assert {request.split()[2] for request in asked if request.count(" ") == 2} == set(kinds)
    assert (result.images, result.rows, result.errors) == (50, 50, 0)
    rows = {path[2:]: value for path, value in local.items() if path[0] == "b"}
    assert same(read("bucket/faulty", server.filesystem()), rows)


@pytest.mark.parametrize(
    ("moment", "url"),
    [("listing", "list-type=2.*prefix=images"), ("first", "/images/a/000"), ("last", "/images/c/149")],
)
def test_credentials_that_expire_stop_the_job_and_nothing_is_decided(
    moment, url, images, local, model, server, ray
):
    out = f"s3://bucket/expired-{moment}"
    with server.failing("expired", method="GET", url=url, times=0):
        with pytest.raises(TlrayError, match=r"ExpiredToken|expired|ACCESS_DENIED"):
            extract("s3://bucket/images", f"{out}/set", GREY)
        if moment == "last":
            with pytest.raises(JobError, match=r"images/c/149.png now: .*expired"):
                predict(model, "s3://bucket/images", f"{out}/p.parquet", precision="float32")
    assert "set/manifest.json" not in files(server, out[5:])
    result = extract("s3://bucket/images", f"{out}/set", GREY)
    assert (result.images, result.rows, result.errors) == (IMAGES, IMAGES, 0)
    assert same(read(f"{out[5:]}/set", server.filesystem()), local)
    if moment == "last":
        result = predict(model, "s3://bucket/images", f"{out}/p.parquet", precision="float32")
        assert (result.images, result.rows, result.errors) == (IMAGES, IMAGES, 0)


def test_a_training_whose_features_are_refused_goes_on_later(features, server):
    out, settings = "s3://bucket/refused-model", {"head": "linear", "epochs": 1}
    with (
        server.failing("expired", method="GET", url="/features/part-00001", times=0),
        pytest.raises(JobError, match=r"part-00001.parquet cannot be read: .*GetObject"),
    ):
        fit(features, out, **settings)
    assert "manifest.json" not in files(server, out[5:])
    assert fit(features, out, **settings).rows == IMAGES


@pytest.mark.distributed
def test_a_command_that_is_killed_goes_on(images, local, ray, server):
    out = "s3://bucket/killed"
    settings = ["--backbone", GREY.backbone, "--image-size", GREY.image_size, "--precision", "float32"]
    command = ["-m", "tests.support.numpy_network", "extract", "s3://bucket/images", "--out", out, *settings]
    with server.failing("slow", url="/killed/part-00001", seconds=2, times=0):
        first = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_for(lambda: "part-00000.parquet" in files(server, "bucket/killed"))
        first.kill()
        first.wait()
    server.requests()
    result = extract("s3://bucket/images", out, GREY)
    assert (result.images, result.rows, result.errors) == (IMAGES, IMAGES, 0)
    assert not [asked for asked in server.requests() if asked.startswith("POST /bucket/killed/part-00000")]
    assert same(read("bucket/killed", server.filesystem()), local)


def test_objects_that_came_later_and_one_that_was_replaced(pictures, ray, server):
    data = list(pictures.values())
    server.put((f"bucket/late/{number}.png", data[number]) for number in range(3))
    extract("s3://bucket/late", "s3://bucket/late-set", GREY)
    for name, new in (("1a.png", data[3]), ("2.png", data[4] + b"more")):
        Folder.open("s3://bucket/late").write(name, new)
    result = extract("s3://bucket/late", "s3://bucket/late-set", GREY, extend=True)
    assert (result.images, result.rows) == (4, 4)
    assert result.changes == Changes(added=1, replaced=1, replaced_paths=["2.png"])
    assert sorted(read("bucket/late-set", server.filesystem())) == ["0.png", "1.png", "1a.png", "2.png"]


# What is listed


def test_a_listing_of_many_pages_has_every_image_once(server):
    names = [f"many/{number:04d}.png" for number in range(1010)]
    names += [f"many/sub/{number}.png" for number in range(3)] + ["many/.hidden.png", "many/read.me"]
    server.put((f"bucket/{name}", b"x") for name in names)
    server.requests()
    images = Images.open("s3://bucket/many")
    rows = list(images)
    assert any("continuation-token" in request for request in server.requests())
    assert [row.path for row in rows] == sorted(name[5:] for name in names[:-2])
    assert images.passed_over.total() == 1
    assert {row.size for row in rows} == {1}
    assert {row.label for row in rows} == {None, "sub"}


def test_a_key_with_an_empty_folder_is_named(server):
    server.put([("bucket/slashes/cats//a.jpg", b"x"), ("bucket/slashes/dogs/b.jpg", b"x")])
    with pytest.raises(UserError, match=r"the key 'bucket/slashes/cats//a\.jpg' has a folder without a name"):
        list(Images.open("s3://bucket/slashes"))
    assert [row.path for row in Images.open("s3://bucket/slashes/dogs")] == ["b.jpg"]


def test_metadata_and_a_table_in_a_bucket(server):
    table = b"file_name,label\n1.jpg,cat\n0.jpg,dog\n"
    names = [f"bucket/hub/data/{split}/{number}.jpg" for split in ("train", "dev") for number in range(2)]
    server.put((name, b"x") for name in names)
    server.put((f"bucket/hub/data/{split}/metadata.csv", table) for split in ("train", "dev"))
    assert [(row.path[5:], row.split, row.label) for row in Images.open("s3://bucket/hub")] == [
        (f"{folder}/{number}.jpg", split, label)
        for folder, split in (("dev", "validation"), ("train", "train"))
        for number, label in ((0, "dog"), (1, "cat"))
    ]
    server.put([("bucket/hub/t.csv", b"path\n0.jpg\n")])
    with pytest.raises(UserError, match=r"none of the first 1 paths of the table 'bucket/hub/t\.csv' exists"):
        Images.open("s3://bucket/hub/t.csv")


def test_names_of_any_characters(server):
    stems = ("a b", "100%", "%41", "ünï", "a+b&c=d", "#?", "two  spaces", "~'();")
    names = [f"{stem}.png" for stem in stems]
    server.put((f"bucket/ödd folder/{name}", name.encode()) for name in names)
    for uri in ("s3://bucket/ödd folder", "s3://bucket/%C3%B6dd%20folder"):
        folder = Folder.open(uri)
        assert [row.path for row in Images.open(uri)] == sorted(names)
        assert {name: folder.read(name).decode() for name in names} == dict(zip(names, names, strict=True))


def test_predictions_and_a_report_leave_no_work_and_take_no_place_of_others(server, tmp_path, monkeypatch):
    kill_points.prepare(tmp_path, monkeypatch.setattr)
    images, model, folder = tmp_path / "images", tmp_path / "given", Folder.open("s3://bucket/written")
    server.put([("bucket/written/p.errors.csv", b"mine"), ("bucket/written/report/index.html", b"mine")])
    with pytest.raises(UserError, match=r"written/p.errors.csv already exists"):
        predict(model, images, f"{folder.uri}/p.csv", max_bad_fraction=1)
    with pytest.raises(UserError, match=r"written/report is not empty and has no report"):
        evaluate(model, images, out=f"{folder.uri}/report", max_bad_fraction=1)
    assert (folder.read("p.errors.csv"), folder.read("report/index.html")) == (b"mine", b"mine")
    folder.remove("p.errors.csv")
    folder.remove("report")
    assert predict(model, images, f"{folder.uri}/p.csv", max_bad_fraction=1).rows == 5
    assert evaluate(model, images, out=f"{folder.uri}/report", max_bad_fraction=1).rows == 5
    assert folder.names() == ["p.csv", "p.errors.csv", "report"]
    assert folder.names("report") == ["confusion_matrix.png", "index.html", "report.json"]


def test_a_whole_bucket_one_object_and_what_is_not_there(server):
    server.put([("small", b""), ("small/x/1.png", b"x"), ("small/2.png", b"xx")])
    assert [row.path for row in Images.open("s3://small")] == ["2.png", "x/1.png"]
    assert [row.path for row in Images.open("s3://small/")] == ["2.png", "x/1.png"]
    assert [(row.path, row.size) for row in Images.open("s3://small/2.png")] == [("2.png", 2)]
    for uri in ("s3://small/none", "s3://no-such-bucket/images"):
        with pytest.raises(UserError, match="does not exist"):
            Images.open(uri)
    with pytest.raises(UserError, match="cannot write to s3://no-such-bucket/out") as caught:
        extract("s3://small/2.png", "s3://no-such-bucket/out", GREY)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="lies among the images"):
        extract("s3://small", "s3://small/x/set", GREY)


# Whole or not at all


def test_a_folder_of_a_bucket(server):
    folder = Folder.open("s3://bucket/folder/")
    for place in (folder, Folder.open("s3://KEY:SECRET@bucket/folder")):
        assert (place.uri, place.child("set").uri) == ("s3://bucket/folder", "s3://bucket/folder/set")
    assert not folder.exists()
    assert folder.names() == folder.walk("deep") == []
    for name, data in (("deep/er/name.gz", b"x"), ("deep/er/name.gz", b"not gzip"), ("empty", b"")):
        folder.write(name, data)
    copy = pickle.loads(pickle.dumps(folder))
    assert (copy.read("deep/er/name.gz"), copy.read("empty")) == (b"not gzip", b"")
    assert (copy.names(), copy.child("deep").names()) == (["deep", "empty"], ["er"])
    assert copy.walk("deep") == ["deep/er/name.gz"]
    assert copy.exists("deep")
    assert [copy.is_file(name) for name in ("deep", "deep/er/name.gz")] == [False, True]
    with pytest.raises(FileNotFoundError):
        copy.read("missing")
    copy.remove("deep")
    copy.remove("missing")
    assert files(server, "bucket/folder") == ["empty"]
    copy.remove("empty")
    copy.remove_empty()
    assert not copy.exists()


def fail_half_way(folder: Folder, name: str, error: type[BaseException]) -> None:
    with folder.writing(name) as stream:
        stream.write(b"half" * (3 << 20))
        raise error


def test_nothing_is_left_of_a_file_or_an_upload_that_fails(server):
    folder = Folder.open("s3://bucket/failed")
    folder.write("old", b"old")
    server.requests()
    for name, error in product(("new", "old"), (ValueError, KeyboardInterrupt)):
        with pytest.raises(error):
            fail_half_way(folder, name, error)
    assert server.requests() == []
    with server.failing("403", method="PUT", url="partNumber=2", times=0):
        for name in ("new", "old"):
            with pytest.raises(OSError, match="ACCESS_DENIED"):
                folder.write(name, bytes(25 << 20))
    assert files(server, "bucket/failed") == ["old"]
    assert folder.read("old") == b"old"


WRITE = """
import sys
from tlray.core.storage import Folder
Folder.open(sys.argv[1]).write("name", bytes(25 << 20))
"""


@pytest.mark.parametrize(
    ("how", "during"),
    [(signal.SIGKILL, "partNumber=2"), (signal.SIGINT, "uploads"), (signal.SIGINT, "partNumber=2")],
)
def test_a_writer_that_is_stopped_leaves_a_whole_object_or_none(how, during, server):
    server.requests()
    with server.failing("slow", url=f"/stopped/name.*{during}", seconds=1):
        command = [sys.executable, "-c", WRITE, "s3://bucket/stopped"]
        writer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(lambda: any("slow" in request for request in server.requests()))
        writer.send_signal(how)
        assert writer.wait(20) != 0
    info = server.filesystem().get_file_info("bucket/stopped/name")
    assert info.size in (None, 25 << 20)
    assert how == signal.SIGINT or info.size is None
    if info.is_file:
        server.filesystem().delete_file("bucket/stopped/name")


# What a reader makes of the answers

VERSION1 = b"VERSION1" + np.random.default_rng(0).bytes(10_000)


def outcome(read: Reader, row: Listed) -> str:
    """The version of the bytes that are read, or the error."""
    try:
        return {VERSION1: "version 1", VERSION1.replace(b"1", b"2", 1): "version 2"}[read(*row.place)]
    except BadImage as bad:
        return bad.error
    except StorageError as error:
        return str(error)


@pytest.fixture
def listed(tmp_path, server, request) -> Images:
    """An image of its own, one in a tar file and one in a Parquet file, in a bucket."""
    (tmp_path / "a.png").write_bytes(VERSION1)
    write_tar(tmp_path / "b.tar", [("x.png", VERSION1)])
    write_parquet(tmp_path / "c.parquet", key=["x"], image=[VERSION1])
    folder = re.sub(r"\W", "-", request.node.name)
    server.put((f"bucket/{folder}/{path.name}", path.read_bytes()) for path in tmp_path.iterdir())
    return Images.open(f"s3://bucket/{folder}")


@pytest.mark.parametrize(
    ("kind", "times", "expected"),
    [
        ("expired", 0, ["ExpiredToken"] * 3),
        ("frozen", 0, ["OSError"] * 3),
        ("reset", 1, ["version 1"] * 3),
        ("short", 0, ["sends only a part of it"] * 3),
        ("short", 2, ["version 1"] * 3),
        ("same", 1, ["Replaced", "version 2", "version 2"]),
        ("shorter", 1, ["Replaced", "version 2", "Damaged"]),
        ("longer", 1, ["Replaced", "version 2", "Damaged"]),
    ],
)
def test_answers_that_are_refused_short_or_of_another_object(listed, server, kind, times, expected):
    rows, read = list(listed), Reader(listed.root)
    with server.failing(kind, method="GET", url=r"\.(png|tar|parquet)$", times=times):
        outcomes = [outcome(read, row) for row in rows]
    assert [re.search(words, text) is not None for words, text in zip(expected, outcomes, strict=True)] == [
        True, True, True
    ], outcomes  # fmt: skip


def test_what_was_replaced_since_the_listing(listed, server):
    rows = list(listed)
    data = VERSION1.replace(b"1", b"2", 1)
    for change, expected in (("removed", "FileNotFoundError"), ("longer", "Replaced")):
        if change == "removed":
            server.filesystem().delete_file(f"{listed.root.path}/a.png")
        else:
            listed.root.write("a.png", data + b"more")
        assert outcome(Reader(listed.root), rows[0]) == expected
    listed.root.write("a.png", data)
    assert outcome(Reader(listed.root), rows[0]._replace(size=None)) == "version 2"
