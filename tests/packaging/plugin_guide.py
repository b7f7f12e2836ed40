"""docs/plugins.md, followed to the letter, with no network: each command and each piece of code on it."""

import os
import re
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

GUIDE = ROOT / "docs" / "plugins.md"
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)


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


@pytest.mark.slow
def test_the_guide(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / f"{i}.png")
    prepare_keras(gpu=False)
    said = ""
    for language, block in BLOCKS:
        path = re.match("# (.+)\n", block)
        if language == "sh":
            done = subprocess.run(
                ["sh", "-e"], input=block, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout
        elif path:
            assert Path(path[1]).is_file()
            Path(path[1]).write_text(block)
        else:
            monkeypatch.syspath_prepend(str(tmp_path / "my-net"))
            exec(block, {})
    assert re.search(r"my-net: \d\d ok, 0 failed, 1 skipped", said)
    assert re.search(r"\d\d passed, 1 skipped", said)
    (part,) = (tmp_path / "features").glob("part-*.parquet")
    assert pq.read_schema(part).field("features").type.shape == [3, 3, 512]
    assert (tmp_path / "my-net.npz").is_file()
    del sys.modules["my_net"]


def test_the_guide_has_what_is_run():
    assert [language for language, _ in BLOCKS] == ["sh", "python", "sh", "python", "sh", "python"]
