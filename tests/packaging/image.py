"""The installation of the image, executed here, and the guide's cluster on one machine; two minutes or more.

Not among the tests that `make test` runs: `make test-deploy`.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.cluster_jobs.test_guide import type_the_guide
from tests.packaging.test_deploy import instructions
from tests.support.ray_cluster import BIN
from tlray.cluster import wheels


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """A folder that becomes what `/` is in the image; only what apt does is left out."""
    root = tmp_path_factory.mktemp("image")
    places = ("/opt/tlray", "/tmp/packages.lock", "/wheels", "/src")

    def here(words: str) -> str:
        for place in places:
            words = re.sub(rf"(?<![\w.}}])(?={place}\b)", str(root), words)
        return words.replace("${LOCK}", "image.lock")

    folder = root
    python = Path(os.path.realpath(BIN / "python")).parent
    environment = {"PATH": f"{python}:/usr/bin:/bin", "HOME": str(root)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    for name, words in instructions():
        if name == "WORKDIR":
            folder = Path(here(words))
            if folder.is_relative_to(root):
                folder.mkdir(parents=True, exist_ok=True)
        if name == "COPY" and "--from" not in words:
            *sources, target = here(words).split()
            for source in sources:
                place = folder / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place)
                else:
                    place = place / Path(source).name if target.endswith("/") else place
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, place)
        if name == "RUN" and "apt-get" not in words:
            command = re.sub(r"^--mount=\S+ +", "", here(words))
            subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, check=True)
    return root


def run(image: Path, *command: str) -> str:
    environment = {"PATH": f"{image}/opt/tlray/bin:/usr/bin:/bin", "HOME": str(image)}
    done = subprocess.run(command, cwd=image, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_image_has_tlray_and_all_it_needs(image):
    assert run(image, "tlray", "--version").startswith("tlray ")
    assert "vgg16-imagenet-pypi" in run(image, "tlray", "plugins", "list")
    assert "No broken requirements" in run(image, "python", "-m", "pip", "check")
    run(image, "python", "-c", "import aiohttp, virtualenv, boto3, googleapiclient, google_auth_httplib2")
    print(run(image, "du", "-sh", f"{image}/opt/tlray"))


def test_nothing_is_sent_to_a_cluster_of_the_image(image):
    packages = wheels.installed()
    there = wheels.read_probe(run(image, "python", "-c", wheels.PROBE, *packages))
    assert there is not None
    assert [name for name, package in packages.items() if wheels.lacking(name, package, there)] == []


def test_the_guides_cluster_on_one_machine(tmp_path):
    type_the_guide(tmp_path, f"demo --out {tmp_path}/demo", times=1)
    assert (tmp_path / "demo" / "model" / "model.keras").exists()
