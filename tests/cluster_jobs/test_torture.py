"""A short `make torture`: kills, and nothing is lost or there twice."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster_jobs.torture import (
    KINDS,
    Job,
    Kill,
    Torture,
    ViolationError,
    check,
    draw,
    read,
    write_images,
)

OPTIONS = ("--backbone", "small-vggnet", "--image-size", "96", "--max-bad-fraction", "0.5")


def test_the_kills_of_a_seed_are_always_the_same() -> None:
    assert draw(3, 30, KINDS) == draw(3, 30, KINDS) != draw(4, 30, KINDS)
    assert sorted(kill.kind for kill in draw(3, 8, KINDS)) == sorted(2 * KINDS)


def _write_set(out: Path) -> None:
    """A set of two rows in a part each, and an error."""
    (out / "errors").mkdir(parents=True)
    for shard, path in enumerate(("a/1.jpg", "a/2.jpg")):
        features = pa.FixedShapeTensorArray.from_numpy_ndarray(np.full((1, 2, 3), shard, np.float32))
        row = {"path": [path], "split": pa.array([None], pa.string()), "label": ["a"], "features": features}
        pq.write_table(pa.table(row), out / f"part-{shard:05d}.parquet")
    error = {"path": "b/3.jpg", "split": None, "label": "b", "stage": "decode"}
    pq.write_table(pa.Table.from_pylist([error]), out / "errors" / "part-00001.parquet")
    counts = {"images": 3, "rows": 2, "errors": 1, "splits": {}, "rows_per_class": {"a": 2}, "shards": 2}
    (out / "manifest.json").write_text(json.dumps(counts))


def test_all_that_can_be_wrong_with_a_set_is_seen(tmp_path: Path) -> None:
    """Or a torture that finds nothing would mean nothing."""
    files = {"a/1.jpg", "a/2.jpg", "b/3.jpg"}
    _write_set(tmp_path / "good")
    good, part = read(tmp_path / "good"), tmp_path / "good" / "part-00001.parquet"

    def wrong(name: str) -> str:
        return "; ".join(check(tmp_path / name, read(tmp_path / name), good, files))

    assert wrong("good") == ""
    for name in ("lost", "twice", "other", "left", "half"):
        _write_set(tmp_path / name)
    (tmp_path / "lost" / part.name).unlink()
    assert wrong("lost").startswith("lost: a/2.jpg; other rows than undisturbed: a/2.jpg; the manifest says")
    (tmp_path / "twice" / "part-00002.parquet").write_bytes(part.read_bytes())
    assert wrong("twice") == "there too often: a/2.jpg; the manifest says shards 2, the files 3"
    table = pq.read_table(part)
    values = pa.FixedShapeTensorArray.from_numpy_ndarray(np.full((1, 2, 3), 1.5, np.float32))
    pq.write_table(table.set_column(3, "features", values), tmp_path / "other" / part.name)
    assert wrong("other") == "features differ by up to 0.5 in 1 rows: a/2.jpg"
    (tmp_path / "left" / "errors" / ".part-00000.parquet.0.tmp").touch()
    assert wrong("left") == "files that were left: errors/.part-00000.parquet.0.tmp"
    (tmp_path / "half" / part.name).write_bytes(part.read_bytes()[:100])
    with pytest.raises(ViolationError, match=r"part-00001\.parquet cannot be read"):
        read(tmp_path / "half")


def test_kills_lose_no_image() -> None:
    """Those of the command alone are in test_kills.py."""
    kills = [
        Kill("everything", 0.3, 0, cluster=False),
        Kill("node", 0.6, 0.9, cluster=True),
        Kill("actor", 0.05, 0.2, cluster=True),
    ]
    # A short path: Ray's sockets lie below it. Its agents may still write there when this ends.
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        torture = Torture(Job(work, write_images(work / "images", 400), OPTIONS), kills)
        torture.run(agents=False)
        assert torture.violations == []
    assert torture.summary().startswith("3 kills (0 driver, 1 actor, 1 node, 1 everything)")
