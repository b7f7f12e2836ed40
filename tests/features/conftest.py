"""What the tests of this room share."""

from pathlib import Path

import pytest

from tlray.core.storage import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "features"))
