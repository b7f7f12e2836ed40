"""The packages that a cluster lacks: tlray and its plugins, sent as wheels, and what these require."""

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
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import ZIP_DEFLATED, ZipFile

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tlray.core.errors import UserError

PROBE = """
import json, sys
from importlib.metadata import distributions
from packaging.markers import default_environment
from packaging.utils import canonicalize_name
packages = {}
for package in distributions():
    packages.setdefault(canonicalize_name(package.metadata["Name"] or ""), package)
print(json.dumps({
    "markers": default_environment(),
    "packages": {name: package.version for name, package in packages.items()},
    "records": {name: packages[name].read_text("RECORD") for name in sys.argv[1:] if name in packages},
}))
"""
"""Python code that prints a `Cluster` as JSON; its arguments are the packages whose RECORD is printed."""

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


@dataclass(frozen=True)
class Package:
    """An installed package that can be sent to a cluster."""

    name: str
    version: str
    files: Mapping[str, bytes]
    """The files of its wheel by path, without RECORD."""
    requires: tuple[str, ...]
    requires_python: str
    is_local: bool
    """Whether it was installed from a folder: its content may then change while its version stays."""

    @property
    def content(self) -> str:
        """A digest, in twelve digits, of all files except the metadata."""
        return _content((path, _digest(data)) for path, data in self.files.items())

    def write(self, folder: Path) -> Path:
        """Write the package as a wheel whose version contains `content`, and that requires no packages.

        Ray caches wheels by name, and pip would install requirements that the cluster has in other versions.
        """
        version = f"{self.version}{'.' if '+' in self.version else '+'}{self.content}"
        stem = f"{self.name.replace('-', '_')}-{version}"
        files = {}
        for path, data in self.files.items():
            _, about, name = path.partition(".dist-info/")
            files[f"{stem}.dist-info/{name}" if about else path] = data
        metadata, record = f"{stem}.dist-info/METADATA", f"{stem}.dist-info/RECORD"
        files[metadata] = _metadata(files[metadata], version)
        rows = [f'"{path}",{_digest(data)},{len(data)}' for path, data in files.items()]
        files[record] = "\n".join([*rows, f'"{record}",,\n']).encode()
        # The name of a wheel joins its tags: py2-none-any and py3-none-any become py2.py3-none-any.
        tags = re.findall(r"^Tag: *(\S+)", files[f"{stem}.dist-info/WHEEL"].decode(), re.M)
        parts = zip(*(tag.split("-") for tag in tags), strict=True)
        tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
        target = folder / f"{stem}-{tag}.whl"
        with ZipFile(target, "w", ZIP_DEFLATED) as wheel:
            for path, data in files.items():
                wheel.writestr(path, data)
        return target


def installed() -> list[Package]:
    """Tlray and every installed package that has plugins for it.

    Raises:
        UserError: the files of a package can neither be read nor built.
    """
    packages = {"tlray": distribution("tlray")}
    for package in distributions():
        if any(point.group.startswith("tlray.") for point in package.entry_points):
            packages.setdefault(canonicalize_name(package.name), package)
    return [_read(name, package) for name, package in sorted(packages.items())]


def lacking(packages: Iterable[Package], cluster: Cluster) -> list[Package]:
    """The packages that the cluster lacks, or has with another version or content."""
    lacking = []
    for package in packages:
        rows = csv.reader((cluster.records.get(package.name) or "").splitlines())
        same_version = cluster.packages.get(package.name) == package.version
        same_content = package.content == _content((path, digest) for path, digest, *_ in rows)
        if not same_version or (package.is_local and not same_content):
            lacking.append(package)
    return lacking


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


def _read(name: str, installed: Distribution) -> Package:
    """Read an installed package; an editable installation is built, because its files are elsewhere."""
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
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
        is_local=str(origin.get("url", "")).startswith("file:"),
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


def _metadata(data: bytes, version: str) -> bytes:
    """Replace the version in a METADATA file, and remove the requirements."""
    head, separator, description = data.decode().partition("\n\n")
    head = re.sub(r"^Version:.*", f"Version: {version}", head, count=1, flags=re.M)
    head = re.sub(r"^Requires-Dist:.*\n?", "", head, flags=re.M)
    return (head.rstrip("\n") + separator + description).encode()


def read_probe(printed: str) -> Cluster | None:
    """Find the output of `PROBE` among other lines; None if it is not there."""
    lines = [line for line in printed.splitlines() if line.startswith('{"markers"')]
    return Cluster(**json.loads(lines[-1])) if lines else None
