"""What a cluster lacks of what is installed here: tlray and its plugins as wheels, and what they need."""

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
from typing import Any
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
found = {}
for one in distributions():
    found.setdefault(canonicalize_name(one.metadata["Name"] or ""), one)
print(json.dumps({
    "markers": default_environment(),
    "packages": {name: one.version for name, one in found.items()},
    "records": {name: found[name].read_text("RECORD") for name in sys.argv[1:] if name in found},
}))
"""
"""Python that prints what is installed where it runs, and the files of the packages its arguments name."""

_LEFT_OUT = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""Of an installation, not of a wheel."""


@dataclass(frozen=True)
class Cluster:
    """What is installed on a cluster, as `PROBE` prints it."""

    markers: Mapping[str, str]
    """What requirements may depend on: the version of Python, the platform."""
    packages: Mapping[str, str]
    """The version of each package, by its canonical name."""
    records: Mapping[str, str | None]
    """Where asked for: the files of a package and their digests, as its RECORD has them."""


@dataclass(frozen=True)
class Package:
    """One installed package of ours, with all of its files."""

    name: str
    version: str
    files: Mapping[str, bytes]
    """As in its wheel, without RECORD."""
    requires: tuple[str, ...]
    requires_python: str
    is_local: bool
    """Whether it was installed from a folder, so that its version says little of its content."""

    @property
    def content(self) -> str:
        """What it does, in twelve digits: a digest of all but its metadata."""
        rows = ((path, _digest(data)) for path, data in self.files.items())
        return _content(rows)

    def write(self, folder: Path) -> Path:
        """Write it as a wheel whose version says its content, and that asks for no other package.

        Ray keeps wheels by their names, and lets pip install what they ask for beside what the cluster has.
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
        # As in the names of wheels: py2-none-any and py3-none-any are py2.py3-none-any.
        tags = re.findall(r"^Tag: *(\S+)", files[f"{stem}.dist-info/WHEEL"].decode(), re.M)
        parts = zip(*(tag.split("-") for tag in tags), strict=True)
        tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
        target = folder / f"{stem}-{tag}.whl"
        with ZipFile(target, "w", ZIP_DEFLATED) as wheel:
            for path, data in files.items():
                wheel.writestr(path, data)
        return target


def installed() -> list[Package]:
    """Tlray and every package here that has plugins for it.

    Raises:
        UserError: one of them can neither be built nor read.
    """
    found = {"tlray": distribution("tlray")}
    for one in distributions():
        if any(point.group.startswith("tlray.") for point in one.entry_points):
            found.setdefault(canonicalize_name(one.name), one)
    return [_read(name, one) for name, one in sorted(found.items())]


def lacking(packages: Iterable[Package], cluster: Cluster) -> list[Package]:
    """Those of the packages that the cluster has not, or has otherwise."""
    return [one for one in packages if not _is_there(one, cluster)]


def needed(shipped: Iterable[Package], cluster: Cluster) -> list[str]:
    """What these packages need and the cluster has not: requirements of the versions that are installed here.

    Raises:
        UserError: the cluster has another version than they need, of a package or of Python.
    """
    ours = {one.name for one in shipped}
    found: dict[str, str] = {}

    def visit(requirements: Iterable[str], who: str, extras: Iterable[str] = ()) -> None:
        for requirement in map(Requirement, requirements):
            name = canonicalize_name(requirement.name)
            environments = [{**cluster.markers, "extra": extra} for extra in ("", *extras)]
            if requirement.marker and not any(map(requirement.marker.evaluate, environments)):
                continue
            if name in ours:
                continue
            there = cluster.packages.get(name)
            if there is not None and not requirement.specifier.contains(there, prereleases=True):
                raise UserError(
                    f"{who} needs {name}{requirement.specifier}, and the cluster has {name} {there}: "
                    "change one of them"
                )
            if name in found or (there is not None and not requirement.extras):
                continue
            try:
                here = distribution(name)
            except PackageNotFoundError as error:
                raise UserError(f"{who} needs {name}, which is neither here nor on the cluster") from error
            if there is None:
                found[name] = f"{name}=={here.version}"
            visit(here.requires or (), f"{name} {here.version}", requirement.extras)

    for one in shipped:
        if not SpecifierSet(one.requires_python).contains(cluster.markers["python_full_version"]):
            raise UserError(
                f"{one.name} {one.version} needs Python {one.requires_python}, "
                f"and the cluster has {cluster.markers['python_full_version']}"
            )
        visit(one.requires, f"{one.name} {one.version}")
    return sorted(found.values())


def _is_there(package: Package, cluster: Cluster) -> bool:
    if cluster.packages.get(package.name) != package.version:
        return False
    record = cluster.records.get(package.name)
    if not package.is_local:
        return True
    return record is not None and package.content == _content(
        (row[0], row[1]) for row in csv.reader(record.splitlines())
    )


def _read(name: str, installed: Distribution) -> Package:
    """The files of an installed package; one that is installed as a link to its source is built."""
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
    """The files of the wheel that a folder is built to."""
    with tempfile.TemporaryDirectory(prefix="tlray-wheel-") as folder:
        # With what is installed here if it is enough; if not, pip fetches what the folder is built with.
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
    """As RECORD has it."""
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def _content(rows: Iterable[tuple[str, str]]) -> str:
    """What the files of a package do, in twelve digits; the rows are those of its RECORD.

    Of the metadata the entry points count, which stand in a folder that has the version in its name.
    """
    kept = set()
    for path, digest in rows:
        _, about, name = path.partition(".dist-info/")
        if digest and not path.startswith("../") and (not about or name == "entry_points.txt"):
            kept.add(f"{name if about else path} {digest}")
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:12]


def _metadata(data: bytes, version: str) -> bytes:
    """The same with another version, and without the packages it requires."""
    head, separator, description = data.decode().partition("\n\n")
    head = re.sub(r"^Version:.*", f"Version: {version}", head, count=1, flags=re.M)
    head = re.sub(r"^Requires-Dist:.*\n?", "", head, flags=re.M)
    return (head.rstrip("\n") + separator + description).encode()


def read_probe(printed: str) -> Cluster | None:
    """What `PROBE` has printed, among other lines perhaps; None if it has not."""
    for line in reversed(printed.splitlines()):
        if line.startswith('{"markers"'):
            values: dict[str, Any] = json.loads(line)
            return Cluster(**values)
    return None
