"""Extraction: every image becomes a row or an error once, whatever happens and whatever the network is."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import GREY, KEPT
from tests.support.bad_files import FORMATS, encode, photo, write_bad_files
from tests.support.numpy_network import grey_pixels
from tests.support.outputs import read, same
from tests.support.processes import wait_for
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.features.extract import extract
from tlray.features.feature_set import FeatureSet
from tlray.features.verify import verify
from tlray.images import decoder
from tlray.images.bad_image import BadImage
from tlray.images.index_diff import Changes
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed

pytestmark = pytest.mark.usefixtures("ray")

CONFIG = replace(GREY, max_bad_fraction=0.5)
IMAGES = sum(KEPT.values())


@pytest.fixture(scope="module")
def whole(digits, ray, tmp_path_factory) -> Path:
    """A finished set of all digits, four shards."""
    out = tmp_path_factory.mktemp("whole") / "set"
    extract(digits, out, CONFIG)
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    """A copy of it, times included."""
    return shutil.copytree(whole, tmp_path / "set")


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}


# Bad images


def test_error_rows_are_tried_again_and_all_other_rows_stay(pictures, grey, tmp_path):
    images, out, bad = tmp_path / "images", tmp_path / "set", ("a/003.png", "c/149.png")
    for name, data in pictures.items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(data[:20] if name in bad else data)
    assert extract(images, out, GREY).errors == 2
    shutil.copytree(out, tmp_path / "before")
    for name in bad:
        (images / name).write_bytes(pictures[name])
    (images / "b/001.png").unlink()
    result = extract(images, out, GREY, retry_errors=True)
    assert (result.images, result.rows, result.errors, result.was_complete) == (150, 150, 0, False)
    assert same(read(out), read(grey / "set"))
    # A run that is killed has removed the manifest, and may have left the old error rows of new rows.
    (out / "manifest.json").unlink()
    shutil.copytree(tmp_path / "before/errors", out / "errors", dirs_exist_ok=True)
    with pytest.raises(JobError, match="has 128 rows and 1 errors for 128 images"):
        extract(images, out, GREY)
    result = extract(images, out, GREY, retry_errors=True)
    assert (result.images, result.rows, result.errors) == (150, 150, 0)
    assert same(read(out), read(grey / "set"))
    assert FeatureSet.open(out).manifest.rows == 150
    assert extract(images, out, GREY, retry_errors=True).was_complete


def test_bad_files_become_errors_and_nothing_is_lost(digits, tmp_path):
    mixed, out = shutil.copytree(digits / "test", tmp_path / "images"), tmp_path / "set"
    expected = write_bad_files(mixed / "3")
    with pytest.raises(JobError, match="max-bad-fraction"):
        extract(mixed, out, CONFIG, max_bad_fraction=0.01)
    assert not (out / "manifest.json").exists()
    result = extract(mixed, out, CONFIG)
    rows, errors = read(out), pq.read_table(out / "errors").to_pydict()
    assert (result.rows, result.errors) == (len(rows), len(errors["path"]))
    assert result.images == result.rows + result.errors == KEPT["test"] + len(expected)
    stages = sorted(zip(errors["path"], errors["stage"], strict=True))
    assert stages == sorted((f"3/{name}", what) for name, what in expected.items() if what != "ok")
    assert all(errors["message"])
    for path, value in rows.items():
        data = (mixed / os.fsencode(path).decode()).read_bytes()
        np.testing.assert_array_equal(value, grey_pixels(decoder.decode(data, 8)[None])[0])


def test_two_thousand_damaged_files_become_rows_or_errors(tmp_path):
    random = np.random.default_rng(0)
    whole = [encode(photo(size=(24, 20)), kind) for kind in FORMATS.values()]
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2000):
        data = np.frombuffer(whole[number % len(whole)], np.uint8).copy()
        data[random.integers(0, len(data), random.integers(0, 9))] ^= random.integers(1, 256, dtype=np.uint8)
        end = random.integers(0, len(data)) if random.random() < 0.2 else len(data)
        (images / f"{number:04d}.jpg").write_bytes(data[:end].tobytes())
    result = extract(images, tmp_path / "set", CONFIG, max_bad_fraction=1)
    rows = read(tmp_path / "set")
    table = pq.read_table(tmp_path / "set" / "errors")
    errors = table["path"].to_pylist()
    assert all(map(str.isprintable, table["message"].to_pylist()))
    assert sorted([*rows, *errors]) == sorted(path.name for path in images.iterdir())
    assert (result.rows, result.errors) == (len(rows), len(errors))
    assert min(len(rows), len(errors)) > 200
    for path in images.iterdir():
        try:
            pixels = decoder.decode(path.read_bytes(), 8)
        except BadImage:
            assert path.name in errors
        else:
            np.testing.assert_array_equal(rows[path.name], grey_pixels(pixels[None])[0])


def test_the_largest_image_is_for_the_user_to_say(tmp_path):
    images, out = tmp_path / "images", tmp_path / "set"
    images.mkdir()
    for side in (20, 21):
        (images / f"{side}.png").write_bytes(encode(photo(size=(side, side)), "PNG"))
    extract(images, out, CONFIG, max_pixels=400)
    errors = pq.read_table(out / "errors").to_pydict()
    assert (errors["path"], errors["error"]) == (["21.png"], ["DecompressionBomb"])
    with pytest.raises(UserError, match="max_pixels 400, not 500"):
        extract(images, out, CONFIG, max_pixels=500)


# Run again


def test_finished_work_is_kept_and_the_rest_is_done(digits, whole, out):
    before = times(out)
    assert extract(digits, out, CONFIG).was_complete
    (out / "manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    (out / ".part-00001.parquet.0123abcd.tmp").write_bytes(b"half a file")  # of a writer that was killed
    # That writer may have seen an image fail that can be read now.
    schema = pq.read_schema(out / "errors" / "part-00000.parquet")
    error = pa.table({name: ["x"] for name in schema.names}, schema=schema)
    pq.write_table(error, out / "errors" / "part-00001.parquet")
    assert extract(digits, out, CONFIG).errors == 0
    after = times(out)
    assert {name for name in before if before[name] != after[name]} == {"part-00001.parquet"}
    assert same(read(out), read(whole))
    with pytest.raises(UserError, match="preprocess imagenet, not raw"):
        extract(digits, out, CONFIG, preprocess="raw")


def test_a_missing_row_is_noticed(digits, out):
    part = out / "part-00000.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    (out / "manifest.json").unlink()
    with pytest.raises(JobError, match=r"127 rows and 0 errors for 128 images"):
        extract(digits, out, CONFIG)


def test_work_goes_on_while_images_are_listed_and_after_the_listing_failed(digits, tmp_path, monkeypatch):
    """A piece of the index has 8,192 images; what comes after it is listed while those are worked on."""
    source, out = tmp_path / "many", tmp_path / "set"
    picture = next(digits.glob("train/*/*.png"))
    for number in range(8300):
        path = source / f"{number // 1000}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(picture, path)

    def fails(self: Images, listing=Images.__iter__) -> Iterator[Listed]:
        for number, image in enumerate(listing(self)):
            if number == 8250:
                wait_for(lambda: list(out.glob("part-*")))
                raise UserError("cannot list the folder")
            yield image

    with monkeypatch.context() as patched:
        patched.setattr(Images, "__iter__", fails)
        with pytest.raises(JobError, match="cannot list the folder"):
            extract(source, out, CONFIG)
    before = times(out)
    result = extract(source, out, CONFIG)
    assert (result.images, result.rows, result.errors) == (8300, 8300, 0)
    assert len(read(out)) == 8300
    assert before.items() <= times(out).items()
    assert sorted(os.listdir(out / "index")) == ["part-00000.parquet", "part-00001.parquet"]


def test_images_that_came_later_are_extracted_alone(digits, whole, tmp_path):
    """And until they all are, a set that was finished is what it was."""
    source, out = shutil.copytree(digits, tmp_path / "images"), tmp_path / "set"
    late = sorted(source.glob("train/*/*.png"))[::4] + sorted(source.glob("test/3/*"))
    for path in late:
        path.rename(tmp_path / f"{path.parent.name}-{path.name}")
    extract(source, out, CONFIG)
    before = {path: path.read_bytes() for path in out.glob("part-*")}
    (source / "train" / "0" / "bad.png").write_bytes(b"")
    for path in late:
        (tmp_path / f"{path.parent.name}-{path.name}").rename(path)
    replaced, removed = sorted(source.glob("validation/*/*.png"))[:2]
    shutil.copy(next(digits.glob("test/1/*")), replaced)
    removed.unlink()
    changes = Changes(added=0, replaced=1, removed=1, replaced_paths=[str(replaced.relative_to(source))])
    job = json.loads((out / "manifest.json").read_text())["job"]
    IndexWriter.start(Folder.open(out), Images.open(source), 32, job, extend=True)  # A run that is killed.
    verification = verify(out, source, sample=4)
    assert (verification.rows, verification.changes) == (IMAGES - len(late), changes)
    assert extract(source, out, CONFIG).errors == 1
    assert same(read(out), read(whole))
    assert {path: path.read_bytes() for path in before} == before
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["images"], manifest["rows"], manifest["errors"]) == (IMAGES + 1, IMAGES, 1)
    again = extract(source, out, CONFIG, extend=True)
    assert (again.changes, again.images_per_second, again.was_complete) == (changes, 0, True)
    assert json.loads((out / "manifest.json").read_text()) == manifest


# Beside all this


def test_the_results_are_followed_where_the_command_runs(digits, tmp_path):
    """There Ctrl-C ends Ray Data; followed elsewhere it outlives Ray, which then ends the process."""
    threads = set()

    def progress(done: int, total: int) -> None:
        threads.add(threading.current_thread())

    extract(digits / "test", tmp_path / "set", CONFIG, progress=progress)
    assert threads == {threading.current_thread()}


# Columns of tables


def test_the_columns_that_the_user_names_are_part_of_the_job(grey, tmp_path):
    images = sorted((grey / "images").rglob("*.png"))[:3]
    lines = [f"{path},x.png,{'pug' if number else 'beagle'},dog" for number, path in enumerate(images)]
    (tmp_path / "t.csv").write_text("\n".join(["foto,path,breed,class", *lines]))
    columns = {"path_column": "foto", "label_column": "breed"}
    result = extract(tmp_path / "t.csv", tmp_path / "set", GREY, **columns)
    assert (result.rows, result.classes) == (3, ["beagle", "pug"])
    assert verify(tmp_path / "set", tmp_path / "t.csv").changes == Changes(added=0)
    with pytest.raises(UserError, match="holds another job"):
        extract(tmp_path / "t.csv", tmp_path / "set", GREY, path_column="foto")
