"""Copies the files of this folder into the folder `rendered`, with the values of `.env` filled in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def settings() -> dict[str, str]:
    """Return the values of `.env`, and TLRAY_RAY, which is the version of Ray in the images."""
    lines = (HERE / ".env").read_text().splitlines()
    (ray,) = re.findall(r"^ray==(\S+)", (HERE / "image.lock").read_text(), re.M)
    return {
        "TLRAY_RAY": ray,
        **dict(line.split("=", 1) for line in lines if line and not line.startswith("#")),
    }


def load(path: Path, values: dict[str, str]) -> Any:
    """Read a YAML file and fill in its `${TLRAY_...}`. Raises KeyError for a name without a value."""
    return yaml.safe_load(re.sub(r"\$\{(TLRAY_\w+)\}", lambda match: values[match[1]], path.read_text()))


def render(values: dict[str, str]) -> dict[str, Any]:
    """Return the content of each file by its path, except docker compose, which fills in its own file."""
    paths = [HERE / "aws.yaml", HERE / "gcp.yaml", *sorted((HERE / "kuberay").glob("*.yaml"))]
    contents = {str(path.relative_to(HERE)): load(path, values) for path in paths}
    for path, job in contents.items():
        if job.get("kind") == "RayJob":
            cluster = load(HERE / "kuberay" / "cluster.yaml", values)["spec"]
            changes = {
                group["groupName"]: group
                for group in job["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
            }
            for group in cluster["workerGroupSpecs"]:
                group.update(changes.pop(group["groupName"], {}))
            if changes:
                raise KeyError(f"{path}: cluster.yaml has no {', '.join(changes)}")
            job["spec"]["rayClusterSpec"] = cluster
    return contents


if __name__ == "__main__":
    for path, content in render(settings()).items():
        target = HERE / "rendered" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # Copies instead of shared objects: YAML would write those as anchors, which are hard to read.
        plain = json.loads(json.dumps(content))
        target.write_text(yaml.safe_dump(plain, sort_keys=False, width=200))
        print(target)
