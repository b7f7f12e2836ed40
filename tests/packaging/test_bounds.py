"""The versions of other packages that are allowed were tried, and the locks hold such versions."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECTS = [
    "pyproject.toml",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("plugins/*/pyproject.toml")),
]


def requirements(project: str) -> list[Requirement]:
    about = tomllib.loads((ROOT / project).read_text())["project"]
    return [
        Requirement(text)
        for group in (about["dependencies"], *about.get("optional-dependencies", {}).values())
        for text in group
    ]


def pins(lock: str) -> dict[str, list[str]]:
    """The versions of each package in a lock; another version of Python may need another."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / lock).read_text(), re.M):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_names_no_dependency_twice(project):
    about = tomllib.loads((ROOT / project).read_text())["project"]
    names = [canonicalize_name(Requirement(text).name) for text in about["dependencies"]]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/image.lock", "deploy/image-gpu.lock"])
def test_locks_hold_versions_that_the_projects_allow(project, lock):
    pinned = pins(lock)
    for requirement in requirements(project):
        name = canonicalize_name(requirement.name)
        if name == "tlray" or (
            name == "tensorboard" and name not in pinned
        ):  # An extra the images leave out.
            continue
        assert pinned[name], name
        assert all(requirement.specifier.contains(version) for version in pinned[name]), requirement


@pytest.mark.parametrize("name", ["keras", "ray", "tensorflow", "typer", "pyarrow"])
def test_what_is_used_without_a_promise_may_not_be_newer_than_what_was_tried(name):
    major, minor, *_ = Version(*pins("requirements.lock")[name]).release
    later = f"{major + 1}.0.0" if name == "pyarrow" else f"{major}.{minor + 1}.0"
    asked = [one for one in requirements("pyproject.toml") if one.name == name]
    assert asked
    for requirement in asked:
        assert not requirement.specifier.contains(later), (
            f"{requirement} allows {later}, which nobody has tried"
        )
