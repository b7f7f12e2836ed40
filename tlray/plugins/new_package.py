"""Writes the package of a new plugin, which installs and passes all checks as it is."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from tlray import __version__
from tlray.core.errors import UserError
from tlray.models import registry
from tlray.models.weights import digest


def create(name: str, kind: str) -> list[Path]:
    """Write the package into a new folder inside the current one.

    Args:
        name: the name of the plugin, its package and the folder; the module has underscores instead of "-".
        kind: "backbone", "head" or "weights".

    Returns:
        The paths of the files.

    Raises:
        UserError: the name is invalid or already used, or the folder exists.
    """
    module = name.replace("-", "_")
    groups = {noun: group for group, noun in registry.NOUNS.items()}
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise UserError(
            f"{name!r} is not a valid plugin name: expected small letters, digits and -, as in my-net"
        )
    if kind not in groups:
        raise UserError(f"--kind {kind}: expected one of {', '.join(groups)}")
    if clashes := [plugin for plugin in registry.installed(groups[kind]) if plugin.name == name]:
        raise UserError(f"{clashes[0].package} already provides the {kind} {name!r}: choose another name")
    if os.path.lexists(name):
        raise UserError(f"{Path(name).resolve()} already exists: choose another name, or remove it")
    if importlib.util.find_spec(module):
        raise UserError(f"a Python module {module} already exists, and would clash: choose another name")
    return _write(name, kind, groups[kind], module)


def _write(name: str, kind: str, group: str, module: str) -> list[Path]:
    class_name = "".join(part.capitalize() for part in name.split("-"))
    points = {group: (name, class_name)}
    source, data = f"{module}.py", {}
    values = {"name": name, "module": module, "class_name": class_name, "kind": kind}
    if kind == "weights":
        points["backbones"] = (f"{name}-net", f"{class_name}Net")
        source = f"{module}/__init__.py"
        values["sha256"], data[f"{module}/{module}.npz"] = _random_weights()
    values |= {
        "version": __version__,
        "source": source,
        "entry_points": "\n\n".join(
            f'[project.entry-points."tlray.{group}"]\n{point} = "{module}:{value}"'
            for group, (point, value) in points.items()
        ),
        "tests": "\n".join(
            f'test_{registry.NOUNS[group]} = testing.{registry.NOUNS[group]}_contract("{point}")'
            for group, (point, _) in points.items()
        ),
    }
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{kind}.py": source,
        "test.py": f"tests/test_{module}.py",
    }
    for template, target in templates.items():
        text = files("tlray.plugins").joinpath(f"templates/{template}.template").read_text("utf-8")
        data[target] = Template(text).substitute(values).encode()
    paths = {Path(name, target): content for target, content in data.items()}
    for path, content in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sorted(paths)


def _random_weights() -> tuple[str, bytes]:
    """The digest and the .npz file of random weights for a convolution from 3 to 8 channels."""
    rng, file = np.random.default_rng(0), BytesIO()
    arrays: dict[str, Any] = {
        "conv/kernel": rng.normal(0, 0.2, (3, 3, 3, 8)).astype(np.float32),
        "conv/bias": np.zeros(8, np.float32),
    }
    np.savez(file, **arrays)
    return digest(arrays.values()), file.getvalue()
