"""A short `make torture`: kills, and nothing is lost or there twice."""

import tempfile
from pathlib import Path

from tests.cluster_jobs.torture import Kill, Torture


def test_kills_lose_no_image() -> None:
    """Those of the command alone are in test_kills.py."""
    kills = [
        Kill("everything", 0.3, 0, cluster=False),
        Kill("node", 0.6, 0.9, cluster=True),
        Kill("actor", 0.05, 0.2, cluster=True),
    ]
    # A short path: Ray's sockets lie below it. Its agents may still write there when this ends.
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:
        torture = Torture(Path(folder), 400, kills)
        torture.run(agents=False)
        assert torture.violations == []
    assert torture.summary().startswith("3 kills (0 driver, 1 actor, 1 node, 1 everything)")
