"""What the tests share."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests import ROOT
from tests.support.harmful_images import HARM
from tests.support.s3_server import Server, running
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder

Package = Callable[..., Path]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server with an empty bucket, which s3:// means in this process and in Ray's."""
    with running() as server, pytest.MonkeyPatch.context() as patched:
        for name, value in server.environment.items():
            patched.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            patched.delenv(name, raising=False)
        server.put([("bucket", b"")])
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder for the files of a job; it does not exist yet."""
    return Folder.open(str(tmp_path / "features"))


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Restore the level of the log after each test, because a command with --debug changes it."""
    logger = logging.getLogger("tlray")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def keras() -> ModuleType:
    """Keras, set up as in a command."""
    prepare_keras(gpu=False)
    import keras

    return keras


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, in place of that of this machine."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Install a package of plugins for one test, as pip would: a module and its dist-info.

    Called with the name of the package, the source of its module, and the entry points of each
    group, e.g. `heads={"mine": "Mine"}`. Returns the folder, for the PYTHONPATH of a subprocess.
    """
    modules: list[str] = []

    def install(
        name: str, source: str, version: str = "1.0", requires: Sequence[str] = (), **groups: dict[str, str]
    ) -> Path:
        site, module = tmp_path / f"site-{name}", name.replace("-", "_")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        lines = []
        for group, points in groups.items():
            lines.append(f"[tlray.{group}]")
            lines += [f"{point} = {module}:{value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        (site / f"{module}.py").write_text(source)
        modules.append(module)
        monkeypatch.syspath_prepend(str(site))
        return site

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def harmful(tmp_path: Path) -> dict[str, str]:
    """The environment of a subprocess in which harmful images do harm."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HARM)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}


@pytest.fixture
def harm(harmful: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They do it in the subprocesses of this process."""
    monkeypatch.setenv("PYTHONPATH", harmful["PYTHONPATH"])
