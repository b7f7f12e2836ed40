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
    write_some_digits(tmp_path / "photos", {"train": 16, "validation": 4, "test": 4}, "38")
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


CONNECTED = """
import ray, sys
print(ray.is_initialized())
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
before = ray.get_runtime_context().get_node_id()
settings = {"backbone": "grey-pixels", "image_size": 8}
first = tlray.extract("photos", "one", **settings)
again = tlray.extract("photos", "one", **settings)
print(first.rows, first.was_complete, again.was_complete)
tlray.fit("one", "model-2", head="linear", epochs=2)
print("ray.train" in sys.modules)  # That Ray has no GPU, so the training stayed in this process.
print(before == ray.get_runtime_context().get_node_id())
"""


@pytest.mark.distributed
def test_the_page_and_then_a_ray_that_is_connected(place):
    lines = run(place, *BLOCKS, CONNECTED)
    assert lines[0].startswith("24 rows and 0 errors in ")
    assert "(24, 4, 4, 512) float32" in lines
    assert "unknown setting 'epoch': did you mean epochs?" in lines
    assert lines[-5:] == ["False", "24 False True", "False", "True", "connected"]
    assert (place / "classes.png").stat().st_size > 1000
    for name in ("model/report/index.html", "predictions.parquet", "model-1/model.keras"):
        assert (place / name).is_file()
