"""docs/python.md, as it is written: in a script, and where an event loop runs already, as in a notebook."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.conftest import write_some_digits

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
NOTEBOOK = """
import asyncio, sys

async def cells():
    names = {"__name__": "__main__"}
    for number, cell in enumerate(sys.stdin.read().split("\\0"), 1):
        exec(compile(cell, f"cell {number}", "exec"), names)

asyncio.run(cells())
import ray
print("connected" if ray.is_initialized() else "not connected")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with photos/, which has splits and two classes, and more-photos/."""
    write_some_digits(tmp_path / "photos", {"train": 40, "validation": 10, "test": 10}, "38")
    more = tmp_path / "more-photos"
    more.mkdir()
    for number, picture in enumerate(sorted((tmp_path / "photos" / "test").rglob("*.png"))):
        (more / f"{number}.jpg").write_bytes(picture.read_bytes())
    return tmp_path


def run(place: Path, *code: str) -> list[str]:
    """The lines that code prints, as the cells of a notebook that is a process of its own."""
    environment = {**os.environ, "MPLBACKEND": "agg", "HOME": str(place)}
    command = [sys.executable, "-c", NOTEBOOK]
    done = subprocess.run(
        command, input="\0".join(code), capture_output=True, text=True, cwd=place, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_page(place):
    lines = run(place, *BLOCKS)
    assert lines[0].startswith("60 rows and 0 errors in ")
    assert "(60, 4, 4, 512) float32" in lines
    assert "unknown setting 'epoch': did you mean epochs?" in lines
    assert lines[-1] == "not connected"
    assert (place / "classes.png").stat().st_size > 1000
    for name in ("model/report/index.html", "predictions.parquet", "model-1/model.keras"):
        assert (place / name).is_file()


def test_a_ray_that_is_connected_is_used_and_left(place):
    code = """
import ray, tlray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
before = ray.get_runtime_context().get_node_id()
settings = {"backbone": "grey-pixels", "image_size": 8}
first = tlray.extract("photos", "one", **settings)
again = tlray.extract("photos", "one", **settings)
other = tlray.extract("photos", "two", **settings)
print(first.rows, first.was_complete, again.was_complete, other.rows)
trained = tlray.fit("one", "model", head="linear", epochs=2)
print(trained.time.training < trained.seconds < 6)  # In this process, because that Ray has no GPU.
print(before == ray.get_runtime_context().get_node_id())
"""
    assert run(place, code) == ["60 False True 60", "True", "True", "connected"]
