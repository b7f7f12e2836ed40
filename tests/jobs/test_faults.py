"""Faults of the machine while an extraction runs: an error that says so, or the right result."""

import subprocess
import sys

import pytest

from tests import ROOT
from tests.jobs.conftest import GREY
from tests.support.outputs import read
from tlray.core.errors import JobError
from tlray.features.extract import extract

SMALL_STORE = """
import ray, sys
from tests.support.numpy_network import installed
from tlray.cluster import session
from tlray.features.extract import extract

session._prepare(None)
ray.init("local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
with installed():
    print(extract(*sys.argv[1:], backbone="grey-pixels", image_size=512, store="float16").rows)
"""
"""Ray takes no object store of less than 75 MiB; 128 images of this size have 100 MB."""


@pytest.mark.distributed
def test_the_object_store_is_full(digits, tmp_path):
    """A shard alone is larger than the whole store: Ray has it in a file, and nothing is lost."""
    paths = sorted(map(str, digits.glob("train/*/*.png")))[:150]
    (tmp_path / "images.csv").write_text("\n".join(["path", *paths]))
    command = [sys.executable, "-c", SMALL_STORE, tmp_path / "images.csv", tmp_path / "set"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "150\n", done.stderr
    assert sorted(read(tmp_path / "set")) == paths


def test_the_output_is_taken_away(digits, ray, tmp_path):
    out = tmp_path / "set"

    def progress(done: int, total: int) -> None:
        if not (tmp_path / "gone").exists():
            out.rename(tmp_path / "gone")

    with pytest.raises(JobError) as caught:
        extract(digits / "train", out, GREY, progress=progress)
    assert str(out) in str(caught.value)
    assert "was moved or removed during the job: run it again to begin anew" in str(caught.value)
    assert not out.exists()
    assert extract(digits / "train", out, GREY).rows == 301
