"""The packages that a cluster lacks: tlray and its plugins, sent as files, and what these require."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tlray.core.errors import UserError

PROBE = """
import json, os, platform, sys, uuid
from importlib.metadata import distributions
from packaging.markers import default_environment
from packaging.utils import canonicalize_name
boot = "/proc/sys/kernel/random/boot_id"
machine = [platform.node(), open(boot).read() if os.path.exists(boot) else uuid.getnode()]
def identity(package):
    folder = os.stat(package.locate_file(""))
    return [*machine, folder.st_dev, folder.st_ino]
packages = {}
for package in distributions():
    packages.setdefault(canonicalize_name(package.metadata["Name"] or ""), package)
asked = {name: packages[name] for name in sys.argv[1:] if name in packages}
print(json.dumps({
    "markers": default_environment(),
    "packages": {name: package.version for name, package in packages.items()},
    "records": {name: package.read_text("RECORD") for name, package in asked.items()},
    "identities": {name: identity(package) for name, package in asked.items()},
}))
"""
"""Python code that prints a `Cluster` as JSON; its arguments are the packages to describe in detail."""

_LEFT_OUT = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""Files that an installation has and its wheel does not."""


@dataclass(frozen=True)
class Cluster:
    """The packages that are installed on a cluster."""

    markers: Mapping[str, str]
    """The environment markers of the cluster, e.g. its Python version and platform."""
    packages: Mapping[str, str]
    """The version of each package by its canonical name."""
    records: Mapping[str, str | None]
    """The RECORD of each package that `PROBE` was asked for; it lists files and digests."""
    identities: Mapping[str, list[Any]] = field(default_factory=dict)
    """The machine and folder that each of these packages is installed in."""


@dataclass(frozen=True)
class Package:
    """An installed package that can be sent to a cluster."""

    name: str
    version: str
    files: Mapping[str, bytes]
    """The files of its wheel by path, without RECORD."""
    requires: tuple[str, ...]
    requires_python: str

    @property
    def content(self) -> str:
        """A digest, in twelve digits, of all files except the metadata."""
        return _content((path, _digest(data)) for path, data in self.files.items())

    def unpacked(self) -> dict[str, bytes]:
        """The files as pip would install them, with a version that contains `content`.

        The processes of the job then tell this package from another state of the same version.
        """
        version = f"{self.version}{'.' if '+' in self.version else '+'}{self.content}"
        about = f"{self.name.replace('-', '_')}-{version}.dist-info"
        files = {}
        for path, data in self.files.items():
            _, in_about, name = path.partition(".dist-info/")
            files[f"{about}/{name}" if in_about else path] = data
        line = f"Version: {version}".encode()
        files[f"{about}/METADATA"] = re.sub(rb"(?m)^Version:.*", line, files[f"{about}/METADATA"], count=1)
        rows = [f'"{path}",{_digest(data)},{len(data)}' for path, data in files.items()]
        files[f"{about}/RECORD"] = "\n".join([*rows, f'"{about}/RECORD",,\n']).encode()
        return files


def bundle(packages: Iterable[Package], target: Path) -> Path:
    """Write the packages into one zip file that needs no installation.

    Ray unpacks it under a lock. It installs wheels without one, which fails where several nodes share a
    folder, as all nodes of one machine do, and when a second job sends the same wheel (ray#49059). The times
    in the zip are constant, because Ray names it by its content and uploads it only once.
    """
    with ZipFile(target, "w") as zipped:
        for package in packages:
            for path, data in package.unpacked().items():
                entry = ZipInfo(path)
                entry.external_attr = 0o644 << 16
                zipped.writestr(entry, data, ZIP_DEFLATED)
    return target


def installed() -> dict[str, Distribution]:
    """Tlray and every installed package that has plugins for it, by name; tlray comes first."""
    others: dict[str, Distribution] = {}
    for package in filter(plugins, distributions()):
        others.setdefault(canonicalize_name(package.name), package)
    return {"tlray": distribution("tlray"), **dict(sorted(others.items()))}


def plugins(package: Distribution) -> list[str]:
    """The names of the plugins for tlray that a package has."""
    return [point.name for point in package.entry_points if point.group.startswith("tlray.")]


def here(names: Iterable[str]) -> Cluster | None:
    """The packages of this installation, as `PROBE` describes them on a cluster."""
    command = [sys.executable, "-P", "-c", PROBE, *names]
    return read_probe(subprocess.run(command, check=False, capture_output=True, text=True).stdout)


def lacking(name: str, installed: Distribution, cluster: Cluster) -> Package | None:
    """The package if the cluster lacks it, or has it with another version or content; None otherwise.

    Raises:
        UserError: the files of the package can neither be read nor built.
    """
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    is_local = str(origin.get("url", "")).startswith("file:")
    same_version = cluster.packages.get(name) == installed.version
    if same_version and not is_local:
        return None
    package = _read(name, installed, origin)
    rows = csv.reader((cluster.records.get(name) or "").splitlines())
    if same_version and package.content == _content((path, digest) for path, digest, *_ in rows):
        return None
    return package


def needed(shipped: Iterable[Package], cluster: Cluster) -> list[str]:
    """The requirements of these packages that the cluster lacks, each in the version installed here.

    Raises:
        UserError: a package, or Python, has an unsuitable version on the cluster.
    """
    names = {package.name for package in shipped}
    needed: dict[str, str] = {}

    def visit(requirements: Iterable[str], parent: str, extras: Iterable[str] = ()) -> None:
        for requirement in map(Requirement, requirements):
            name = canonicalize_name(requirement.name)
            environments = [{**cluster.markers, "extra": extra} for extra in ("", *extras)]
            applies = not requirement.marker or any(map(requirement.marker.evaluate, environments))
            if name in names or not applies:
                continue
            remote = cluster.packages.get(name)
            if remote is not None and not requirement.specifier.contains(remote, prereleases=True):
                raise UserError(
                    f"{parent} needs {name}{requirement.specifier}, and the cluster has {name} {remote}: "
                    "change one of them"
                )
            if name in needed or (remote is not None and not requirement.extras):
                continue
            try:
                local = distribution(name)
            except PackageNotFoundError as error:
                raise UserError(f"{parent} needs {name}, which is neither here nor on the cluster") from error
            if remote is None:
                needed[name] = f"{name}=={local.version}"
            visit(local.requires or (), f"{name} {local.version}", requirement.extras)

    for package in shipped:
        who = f"{package.name} {package.version}"
        python = cluster.markers["python_full_version"]
        if not SpecifierSet(package.requires_python).contains(python):
            raise UserError(f"{who} needs Python {package.requires_python}, and the cluster has {python}")
        visit(package.requires, who)
    return sorted(needed.values())


def _read(name: str, installed: Distribution, origin: Mapping[str, Any]) -> Package:
    """Read an installed package; an editable installation is built, because its files are elsewhere."""
    who = f"{name} {installed.version}"
    if origin.get("dir_info", {}).get("editable"):
        files = _build(who, unquote(urlsplit(origin["url"]).path))
    elif installed.files is None:
        raise UserError(
            f"{who} cannot be sent to the cluster: its installation does not list its files; "
            "install it with pip, or put it into the cluster's image"
        )
    else:
        files = {
            path.as_posix(): Path(str(path.locate())).read_bytes()
            for path in installed.files
            if ".." not in path.parts and path.suffix != ".pyc" and path.name not in _LEFT_OUT
        }
    return Package(
        name=name,
        version=installed.version,
        files=files,
        requires=tuple(installed.requires or ()),
        requires_python=installed.metadata["Requires-Python"] or "",
    )


def _build(who: str, source: str) -> dict[str, bytes]:
    """Build the source in a folder, and return the files of the wheel."""
    with tempfile.TemporaryDirectory(prefix="tlray-wheel-") as folder:
        # Use the build tools that are installed; if they do not suffice, let pip download what it needs.
        for options in (["--no-build-isolation"], []):
            command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, *options]
            done = subprocess.run([*command, source], check=False, capture_output=True, text=True)
            if done.returncode == 0:
                (wheel,) = Path(folder).glob("*.whl")
                with ZipFile(wheel) as opened:
                    return {
                        path: opened.read(path)
                        for path in opened.namelist()
                        if not path.endswith(("/", ".dist-info/RECORD"))
                    }
    reason = (done.stderr or done.stdout).strip().rpartition("\n")[2]
    raise UserError(f"{who} cannot be built from {source} to be sent to the cluster: {reason}")


def _digest(data: bytes) -> str:
    """The digest of a file in the notation of RECORD."""
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def _content(rows: Iterable[tuple[str, str]]) -> str:
    """A digest of the rows of a RECORD; the entry points are the only metadata that counts."""
    lines = set()
    for path, digest in rows:
        _, about, name = path.partition(".dist-info/")
        if digest and not path.startswith("../") and (not about or name == "entry_points.txt"):
            # The name of the .dist-info folder contains the version.
            lines.add(f"{name if about else path} {digest}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]


def read_probe(printed: str) -> Cluster | None:
    """Find the output of `PROBE` among other lines; None if it is not there."""
    lines = [line for line in printed.splitlines() if line.startswith('{"markers"')]
    return Cluster(**json.loads(lines[-1])) if lines else None
