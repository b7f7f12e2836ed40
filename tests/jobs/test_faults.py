"""Faults of the machine while an extraction runs: an error that says so, or the right result."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tlray.cluster import session
from tlray.core.config import ExtractConfig
from tlray.core.errors import JobError
from tlray.features.extract import extract
from tlray.recipes.demo import write_digits

pytestmark = pytest.mark.slow

IMAGES = 300
STORE_BYTES = 80 << 20
"""Of Ray's object store; it takes no less than 75 MiB."""


@pytest.fixture(scope="module", autouse=True)
def ray():
    import ray

    session._prepare(None)
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=2, object_store_memory=STORE_BYTES, **options)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_digits(str(folder))
    for path in sorted(folder.rglob("*.png"))[IMAGES:]:
        path.unlink()
    return folder


def test_the_object_store_is_full(images, tmp_path):
    """A shard alone is larger than the whole store: Ray has it in a file, and nothing is lost."""
    config = ExtractConfig(backbone="grey-pixels", image_size=512)
    assert STORE_BYTES < 128 * 512 * 512 * 3
    found = extract(str(images), str(tmp_path / "set"), config)
    assert (found.images, found.rows, found.errors) == (IMAGES, IMAGES, 0)
    parts = (tmp_path / "set").glob("part-*")
    paths = [path for part in parts for path in pq.read_table(part, columns=["path"])["path"].to_pylist()]
    assert len(set(paths)) == len(paths) == IMAGES


def test_the_output_is_taken_away(images, tmp_path):
    out = tmp_path / "set"

    def progress(done: int, total: int) -> None:
        if not (tmp_path / "gone").exists():
            out.rename(tmp_path / "gone")

    with pytest.raises(JobError) as caught:
        extract(str(images), str(out), ExtractConfig(backbone="grey-pixels"), progress=progress)
    assert str(out) in str(caught.value)
    assert not (out / "manifest.json").exists()
