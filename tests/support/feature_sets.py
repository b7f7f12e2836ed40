"""Part files and feature sets that were never extracted."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import manifests
from tlray.core import parquet
from tlray.core.manifest import stamp
from tlray.core.storage import Folder
from tlray.features import part_files
from tlray.features.feature_set import MANIFEST
from tlray.images.index import SCHEMA, Index, piece_name
from tlray.models.provenance import Provenance

PROVENANCE = Provenance.from_json(manifests.PROVENANCE)
JOB = manifests.feature_set_json()["job"]
METADATA = {"job": JOB, "classes": ["a", "b"], "versions": {"tlray": "0.1.0"}}
SHAPE = (2, 3, 4)


def listed(paths: list[str], splits: list[str | None], labels: list[str | None]) -> pa.Table:
    columns = {"path": paths, "split": splits, "label": labels}
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})


def rows(count: int, start: int = 0) -> pa.Table:
    numbers = range(start, start + count)
    return listed(
        [f"{i:05d}.png" for i in numbers],
        [("train", "test", None)[i % 3] for i in numbers],
        [("a", None, "b", "a")[i % 4] for i in numbers],
    )


def numbers(count: int, shape: tuple[int, ...] = SHAPE, start: int = 0) -> np.ndarray:
    """Features that say which row they are of; like VGG's, many are zero."""
    features = np.random.default_rng(start).standard_normal((count, *shape)).astype(np.float32)
    features[features < 0] = 0
    features.reshape(count, np.prod(shape))[:, 0] = np.arange(start, start + count)
    return features


def cut(features: np.ndarray, batch: int = 32) -> Iterator[np.ndarray]:
    return (features[at : at + batch] for at in range(0, len(features), batch))


def write(
    folder: Folder, features: np.ndarray, *, shard: int = 0, store: str = "float32", start: int = 0
) -> None:
    part_files.write_part(
        folder, shard, rows(len(features), start), cut(features), features.shape[1:], store, METADATA
    )


def read(folder: Folder, shard: int = 0) -> pa.Table:
    tables = list(part_files.read_shard(folder, shard, JOB))
    return pa.concat_tables(tables) if tables else pa.table({})


def write_index(folder: Folder, sizes: Sequence[int], table: pa.Table | None = None) -> Index:
    """An index of the images in `table`, or of `rows`; a shard of no rows has one image, which is bad."""
    images: list[dict[str, Any]] = []
    listing = (rows(sum(sizes)) if table is None else table).to_pylist()
    for shard, size in enumerate(sizes):
        listed, listing = listing[:size], listing[size:]
        if not size:
            listed = [{"path": "bad.png", "split": None, "label": None}]
            reasons = dict.fromkeys(("stage", "error", "message"), "bad")
            part_files.write_errors(folder, shard, pa.Table.from_pylist([{**listed[0], **reasons}]), METADATA)
        images += [{**image, "shard": shard} for image in listed]
    values = stamp({"job": JOB, "shards": [size or 1 for size in sizes], "last": True})
    table = pa.Table.from_pylist(images, SCHEMA).replace_schema_metadata(values)
    parquet.write(folder, piece_name(0), table)
    return Index.open(folder, JOB)


def _make_earlier(folder: Folder) -> None:
    """Write all Parquet files anew as the first version did: without checksums, with its format."""
    for name in (name for name in folder.walk("") if name.endswith(".parquet")):
        table = pq.read_table(folder.join(name))
        stamped = table.schema.metadata[b"tlray"].replace(b"tlray-features/2", b"tlray-features/1")
        pq.write_table(
            table.replace_schema_metadata({b"tlray": stamped}), folder.join(name), compression="zstd"
        )


def write_set(
    folder: Folder, sizes: tuple[int, ...] = (50, 0, 70), *, earlier: bool = False, **changed: Any
) -> np.ndarray:
    """A whole feature set, or one of format 1; returns the features of all its rows."""
    features, done = [], 0
    for shard, size in enumerate(sizes):
        features.append(numbers(size, start=done))
        write(folder, features[-1], shard=shard, start=done)
        done += size
    write_index(folder, sizes)
    counts = {
        "splits": {"train": 40, "test": 40},
        "shards": len(sizes),
        "rows": done,
        "errors": sizes.count(0),
    }
    manifest = manifests.feature_set_json(feature_shape=list(SHAPE), **counts)
    if earlier:
        _make_earlier(folder)
        manifest = json.loads(json.dumps(manifest).replace("tlray-features/2", "tlray-features/1"))
    folder.write(MANIFEST, json.dumps({**manifest, **changed}).encode())
    return np.concatenate(features)
