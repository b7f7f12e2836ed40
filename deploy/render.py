"""Fills the files of this folder with the values of `.env`, into the folder `rendered`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def settings() -> dict[str, str]:
    """The values of `.env`, and TLRAY_RAY, the version of Ray in the images."""
    lines = (HERE / ".env").read_text().splitlines()
    (ray,) = re.findall(r"^ray==(\S+)", (HERE / "image.lock").read_text(), re.M)
    return {
        "TLRAY_RAY": ray,
        **dict(line.split("=", 1) for line in lines if line and not line.startswith("#")),
    }


def load(path: Path, values: dict[str, str]) -> Any:
    """A YAML file with its `${TLRAY_...}` filled in. Raises KeyError for one that has no value."""
    return yaml.safe_load(re.sub(r"\$\{(TLRAY_\w+)\}", lambda found: values[found[1]], path.read_text()))


def render(values: dict[str, str]) -> dict[str, Any]:
    """All files but that of docker compose, which fills in its own: the path of each and what it says."""
    paths = [HERE / "aws.yaml", HERE / "gcp.yaml", *sorted((HERE / "kuberay").glob("*.yaml"))]
    found = {str(path.relative_to(HERE)): load(path, values) for path in paths}
    for path, job in found.items():
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
    return found


if __name__ == "__main__":
    for path, content in render(settings()).items():
        target = HERE / "rendered" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(content))  # Without anchors, which would be read and not looked up.
        target.write_text(yaml.safe_dump(plain, sort_keys=False, width=200))
        print(target)
