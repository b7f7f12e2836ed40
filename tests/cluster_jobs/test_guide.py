"""The cluster of deploy/README.md, typed from the text: two nodes on one machine, which share a folder."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests import ROOT
from tests.support.ray_cluster import BIN, end, free_port, left
from tlray.features.feature_set import FeatureSet
from tlray.recipes.demo import write_digits

GUIDE = (ROOT / "deploy" / "README.md").read_text()


def type_the_guide(folder: Path, job: str, times: int) -> str:
    """What the commands of the guide print, whose `demo` becomes the job, which is submitted several times.

    The ports and the folder of Ray are others than in the guide, and `ray stop` is left out, because it would
    stop other Rays too.
    """
    (block,) = re.findall(r"^## Two nodes on this machine.*?^```sh\n(.*?)^```", GUIDE, re.M | re.S)
    head, dashboard = free_port(), free_port()
    ray = Path(tempfile.mkdtemp(prefix="tlray-ray-", dir="/tmp"))  # Ray's sockets want a short path.
    (line,) = re.findall("^tlray submit.*\n", block, re.M)
    for of_the_guide, here in (
        (line, line * times),
        ("--head", f"--head --port={head} --dashboard-port={dashboard} --temp-dir={ray}"),
        (":6379", f":{head}"),
        (":8265", f":{dashboard}"),
        ("demo --out /tmp/tlray-demo", job),
        ("ray stop", "true"),
    ):
        assert of_the_guide in block
        block = block.replace(of_the_guide, here)
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**outer, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-exc", block]
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900
        )
    finally:
        end(ray)
        shutil.rmtree(ray)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left(ray) == []
    return done.stdout + done.stderr


def test_two_nodes_as_the_guide_starts_them(tmp_path):
    write_digits(str(tmp_path / "images"))
    options = "--backbone grey-pixels --image-size 8 --actors 2"
    job = f"extract {tmp_path}/images --out {tmp_path}/features-$RANDOM {options}"
    printed = type_the_guide(tmp_path, job, times=1)
    assert len(re.findall(r"^job tlray-extract-\w+: succeeded", printed, re.M)) == 1
    # The nodes have the installation of this machine.
    assert "packages sent with the job" not in printed
    features = [FeatureSet.open(str(path)) for path in tmp_path.glob("features-*")]
    assert [made.manifest.rows for made in features] == [1797]
