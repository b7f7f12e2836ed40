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

from tests.jobs.conftest import KEPT
from tests.support.bad_files import encode, photo, write_bad_files
from tests.support.numpy_network import grey_pixels
from tests.support.outputs import read, same
from tests.support.processes import wait_for
from tlray.core.config import ExtractConfig
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.features.extract import extract
from tlray.features.verify import verify
from tlray.images import decoder
from tlray.images.bad_image import BadImage
from tlray.images.index_diff import Changes
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed

pytestmark = pytest.mark.usefixtures("ray")

CONFIG = ExtractConfig(backbone="grey-pixels", image_size=8, precision="float32", max_bad_fraction=0.5)
IMAGES = sum(KEPT.values())


@pytest.fixture(scope="module")
def whole(digits, ray, tmp_path_factory) -> Path:
    """A finished set of all digits, four shards."""
    out = tmp_path_factory.mktemp("whole") / "set"
    extract(str(digits), str(out), CONFIG)
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    """A copy of it, times included."""
    return shutil.copytree(whole, tmp_path / "set")


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}


# Bad images


def test_bad_files_become_errors_and_nothing_is_lost(digits, tmp_path):
    mixed, out = shutil.copytree(digits / "test", tmp_path / "images"), str(tmp_path / "set")
    expected = write_bad_files(mixed / "3")
    with pytest.raises(JobError, match="max-bad-fraction"):
        extract(str(mixed), out, replace(CONFIG, max_bad_fraction=0.01))
    assert not (tmp_path / "set" / "manifest.json").exists()
    found = extract(str(mixed), out, CONFIG)
    rows = read(out)
    errors = pq.read_table(tmp_path / "set" / "errors").to_pydict()
    assert found.rows == len(rows)
    assert found.errors == len(errors["path"])
    assert found.images == found.rows + found.errors == KEPT["test"] + len(expected)
    stages = dict(zip(errors["path"], errors["stage"], strict=True))
    assert len(stages) == len(errors["path"])
    assert stages == {f"3/{name}": what for name, what in expected.items() if what != "ok"}
    assert all(errors["message"])
    for path, value in rows.items():
        data = (mixed / os.fsencode(path).decode()).read_bytes()
        np.testing.assert_array_equal(value, grey_pixels(decoder.decode(data, 8)[None])[0])


def test_two_thousand_damaged_files_become_rows_or_errors(tmp_path):
    random = np.random.default_rng(0)
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
    whole = [encode(photo(size=(24, 20)), kind) for kind in kinds]
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2000):
        data = np.frombuffer(whole[number % len(whole)], np.uint8).copy()
        data[random.integers(0, len(data), random.integers(0, 9))] ^= random.integers(1, 256, dtype=np.uint8)
        end = random.integers(0, len(data)) if random.random() < 0.2 else len(data)
        (images / f"{number:04d}.jpg").write_bytes(data[:end].tobytes())
    found = extract(str(images), str(tmp_path / "set"), replace(CONFIG, max_bad_fraction=1))
    rows = read(tmp_path / "set")
    table = pq.read_table(tmp_path / "set" / "errors")
    errors = table["path"].to_pylist()
    assert all(map(str.isprintable, table["message"].to_pylist()))
    assert sorted([*rows, *errors]) == sorted(path.name for path in images.iterdir())
    assert (found.rows, found.errors) == (len(rows), len(errors))
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
    config = replace(CONFIG, max_pixels=400)
    extract(str(images), str(out), config)
    errors = pq.read_table(out / "errors").to_pydict()
    assert (errors["path"], errors["error"]) == (["21.png"], ["DecompressionBomb"])
    with pytest.raises(UserError, match="max_pixels 400, not 500"):
        extract(str(images), str(out), replace(config, max_pixels=500))


# Run again


def test_finished_work_is_kept_and_the_rest_is_done(digits, whole, out):
    before = times(out)
    assert extract(str(digits), str(out), CONFIG).was_complete
    (out / "manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    (out / ".part-00001.parquet.0.tmp").write_bytes(b"half a file")  # of a writer that was killed
    extract(str(digits), str(out), CONFIG)
    after = times(out)
    assert {name for name in before if before[name] != after[name]} == {"part-00001.parquet"}
    assert same(read(out), read(whole))
    with pytest.raises(UserError, match="preprocess imagenet, not raw"):
        extract(str(digits), str(out), replace(CONFIG, preprocess="raw"))


def test_an_error_file_of_a_writer_that_was_killed_does_no_harm(digits, out):
    """It may have seen an image fail that can be read now; the part file is what counts."""
    errors = pq.read_table(out / "errors" / "part-00000.parquet")
    one = pa.table({name: pa.array(["x"]) for name in errors.schema.names}, schema=errors.schema)
    (out / "manifest.json").unlink()
    # Not the first shard, which writes its errors always.
    (out / "part-00001.parquet").unlink()
    pq.write_table(one, out / "errors" / "part-00001.parquet")
    assert extract(str(digits), str(out), CONFIG).errors == 0


def test_a_missing_row_is_noticed(digits, out):
    part = out / "part-00000.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    (out / "manifest.json").unlink()
    with pytest.raises(JobError, match=r"127 rows, and .* has 0, for 128 images"):
        extract(str(digits), str(out), CONFIG)


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
            extract(str(source), str(out), CONFIG)
    before = times(out)
    found = extract(str(source), str(out), CONFIG)
    assert (found.images, found.rows, found.errors) == (8300, 8300, 0)
    assert len(read(out)) == 8300
    assert before.items() <= times(out).items()
    assert sorted(os.listdir(out / "index")) == ["part-00000.parquet", "part-00001.parquet"]


def test_images_that_came_later_are_extracted_alone(digits, whole, tmp_path):
    """And until they all are, a set that was finished is what it was."""
    source, out = tmp_path / "images", tmp_path / "set"
    shutil.copytree(digits, source)
    late = sorted(source.glob("train/*/*.png"))[::4] + sorted(source.glob("test/3/*"))
    for path in late:
        path.rename(tmp_path / f"{path.parent.name}-{path.name}")
    extract(str(source), str(out), CONFIG)
    before = {path: path.read_bytes() for path in out.glob("part-*")}
    (source / "train" / "0" / "bad.png").write_bytes(b"")
    for path in late:
        (tmp_path / f"{path.parent.name}-{path.name}").rename(path)
    replaced, removed = sorted(source.glob("validation/*/*.png"))[:2]
    shutil.copy(digits / "test" / "1" / os.listdir(digits / "test" / "1")[0], replaced)
    removed.unlink()
    changes = Changes(added=0, replaced=1, removed=1, replaced_paths=[str(replaced.relative_to(source))])
    job = json.loads((out / "manifest.json").read_text())["job"]
    IndexWriter.start(
        Folder.open(str(out)), Images.open(str(source)), 32, job, extend=True
    )  # A run that is killed.
    found = verify(str(out), str(source), sample=4)
    assert (found.rows, found.changes) == (IMAGES - len(late), changes)
    assert extract(str(source), str(out), CONFIG).errors == 1
    assert same(read(out), read(whole))
    assert {path: path.read_bytes() for path in before} == before
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["images"], manifest["rows"], manifest["errors"]) == (IMAGES + 1, IMAGES, 1)
    again = extract(str(source), str(out), CONFIG, extend=True)
    assert (again.changes, again.images_per_second, again.was_complete) == (changes, 0, True)
    assert json.loads((out / "manifest.json").read_text()) == manifest


# Beside all this


def test_a_table_of_paths_with_labels_and_splits(digits, tmp_path):
    paths = sorted(digits.glob("test/[37]/*.png"))
    rows = "".join(
        f"{path},seven-{path.parent.name},{'val' if n % 2 else 'train'}\n" for n, path in enumerate(paths)
    )
    (tmp_path / "list.csv").write_text("path,label,split\n" + rows)
    found = extract(str(tmp_path / "list.csv"), str(tmp_path / "set"), CONFIG)
    assert found.rows == len(paths)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["classes"] == ["seven-3", "seven-7"]
    assert set(manifest["splits"]) == {"train", "validation"}


def test_the_results_are_followed_where_the_command_runs(digits, tmp_path):
    """There Ctrl-C ends Ray Data; followed elsewhere it outlives Ray, which then ends the process."""
    followed = set()

    def progress(done: int, total: int) -> None:
        followed.add(threading.current_thread())

    extract(str(digits / "test"), str(tmp_path / "set"), CONFIG, progress=progress)
    assert followed == {threading.current_thread()}
