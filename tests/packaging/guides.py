"""README.md and docs/plugins.md, followed to the letter without a network: each command and all code."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import ROOT
from tlray.core.runtime import prepare_keras


def blocks(page: str) -> list[tuple[str, str]]:
    """The commands and the code on a page, each block with its language."""
    return re.findall(r"^```(sh|python|sql)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


README, GUIDE = blocks("README.md"), blocks("docs/plugins.md")
FOLDERS = [*(f"photos/{split}" for split in ("train", "validation", "test")), "test-photos", "more-photos"]
FOLDERS += ["train", "validation"]
"""The folders of images, with a folder for each class, that README.md names."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A fresh virtual environment that sees what is installed here; pip reaches no index."""
    venv.create(tmp_path / "venv")
    scripts, sees = tmp_path / "venv" / "bin", ", ".join(repr(path) for path in sys.path if "site-" in path)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "seen.pth").write_text(f"import site; list(map(site.addsitedir, [{sees}]))")
    for name in ("pip", "tlray"):
        (scripts / name).write_text(f'#!/bin/sh\nexec "{scripts}/python" -m {name} "$@"\n')
        (scripts / name).chmod(0o755)
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    return {**os.environ, **pip, "PATH": f"{scripts}:{os.environ['PATH']}"}


def write_images(*folders: Path) -> None:
    """Write a picture of each of two classes into each folder."""
    rng = np.random.default_rng(0)
    for number, folder in enumerate(folder / name for folder in folders for name in "ab"):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / f"{number}.png")


def run(program: str, block: str, environment: dict[str, str]) -> str:
    """The output of a block that is typed into a program."""
    done = subprocess.run(
        program.split(), input=block, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, block + done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_readme(environment, keras_home, tmp_path, monkeypatch):
    """Its blocks in their order, in a clone that is installed; tests/cluster_jobs runs the one for a cluster.

    A folder that a block writes anew is removed before, and a command that stands there twice is run once.
    """
    clone, output, done = tmp_path / "clone", "", set()
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "demo")
    shutil.copytree(ROOT, clone, ignore=ignored)
    (clone / ".venv").mkdir()
    (clone / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (clone / ".venv" / "installed").touch()  # Otherwise `make` would install all packages.
    write_images(*(clone / name for name in FOLDERS))
    monkeypatch.chdir(clone)
    environment["KERAS_HOME"] = str(keras_home)
    for language, block in README:
        commands = {line.partition("#")[0].strip() for line in block.splitlines()}
        if language == "python":
            output += run("python", f"{block}print(array.shape)", environment)
        elif language == "sql":
            output += run("python", f"import duckdb\nduckdb.sql({block!r}).show()", environment)
        elif not commands <= done and "tlray submit" not in block:
            for name in re.findall(r"--out (\w+)", block):
                shutil.rmtree(name, ignore_errors=True)
            output += run("sh -e", block, environment)
            done |= commands
    assert "(6, 4, 4, 512)" in output
    assert "train/a/0.png" in output  # What DuckDB shows.
    assert re.search(r"my-net: \d\d ok, 0 failed, 1 skipped", output)
    assert all(Path(name).is_file() for name in ("predictions.parquet", "demo/predictions.parquet"))
    assert all(Path(name, "report/index.html").is_file() for name in ("model", "demo/model"))
    assert all(Path(name, "model.keras").is_file() for name in ("tuned", "all/finetuned"))


@pytest.mark.slow
def test_the_plugin_guide(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos")
    prepare_keras(gpu=False)
    output = ""
    for language, block in GUIDE:
        path = re.match("# (.+)\n", block)
        if language == "sh":
            output += run("sh -e", block, environment)
        elif path:
            assert Path(path[1]).is_file()
            Path(path[1]).write_text(block)
        else:
            monkeypatch.syspath_prepend(str(tmp_path / "my-net"))
            exec(block, {})
    assert re.search(r"my-net: \d\d ok, 0 failed, 1 skipped", output)
    assert re.search(r"\d\d passed, 1 skipped", output)
    (part,) = (tmp_path / "features").glob("part-*.parquet")
    assert pq.read_schema(part).field("features").type.shape == [3, 3, 512]
    assert (tmp_path / "my-net.npz").is_file()
    del sys.modules["my_net"]


def test_the_guides_have_what_is_run():
    assert [language for language, _ in GUIDE] == ["sh", "python", "sh", "python", "sh", "python"]
    for page, languages in (("README.md", {"sh", "python", "sql"}), ("docs/plugins.md", {"sh", "python"})):
        assert set(re.findall(r"^```(\w+)", (ROOT / page).read_text(), re.M)) == languages
