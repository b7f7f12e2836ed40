"""A shard whose errors are tried again keeps its old files until the new ones are written."""

import numpy as np
import pyarrow as pa
import pytest

from tests.support.feature_sets import JOB, METADATA, SHAPE, read, write_set
from tlray.core.config import ExtractConfig
from tlray.features import part_files
from tlray.features.inference_tasks import InferenceJob, NetworkActor, pack
from tlray.images.index import Index


def test_a_killed_retry_of_a_shard_that_has_no_rows_keeps_its_error_rows(folder):
    """Without them the shard would not be tried again, although its image has no row."""
    write_set(folder)  # Its shard 1 has one image, which is bad.
    index = Index.open(folder)
    job = InferenceJob(
        root=folder,
        index=index,
        out=folder,
        settings=ExtractConfig(),
        image_size=1,
        batch_size=1,
        store="float32",
        metadata=METADATA,
        packages={},
        retry_errors=True,
    )
    row = {"path": "bad.png", "shard": 1, "stored": False, "read_seconds": 0.0, "decode_seconds": 0.0}
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 1, 1, 3), np.uint8))
    table = pa.Table.from_pylist([row]).append_column("pixels", pixels)
    for field in list(part_files.ERRORS)[1:]:
        table = table.append_column(field, pa.nulls(1, field.type))
    actor = object.__new__(NetworkActor)  # Its constructor needs Ray.
    actor.job, actor.shape = job, SHAPE
    actor.place = {"actor": "a", "node": "n", "host": "h", "device": "CPU"}

    def killed(pixels: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    actor.network = killed
    with pytest.raises(KeyboardInterrupt):
        actor(pack(table))
    assert part_files.reconcile(folder, index.shard_sizes, JOB)["path"].to_pylist() == ["bad.png"]
    actor.network = lambda pixels: np.ones((len(pixels), *SHAPE), np.float32)
    actor(pack(table))
    assert part_files.reconcile(folder, index.shard_sizes, JOB).num_rows == 0
    assert read(folder, 1)["path"].to_pylist() == ["bad.png"]
