"""Damaged Parquet files: every flipped bit is noticed, or changes nothing."""

import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.core import parquet
from tlray.core.errors import JobError
from tlray.core.storage import Folder

TABLE = pa.table(
    {
        "path": [f"cat/{number:05d}.jpg" for number in range(200)],
        "label": ["cat", "dog"] * 100,
        "features": pa.FixedShapeTensorArray.from_numpy_ndarray(np.random.default_rng(0).random((200, 3))),
    }
).replace_schema_metadata({"tlray": "{}"})


def written(table: pa.Table = TABLE) -> bytes:
    stream = io.BytesIO()
    with parquet.writer(stream, table.schema, use_dictionary=["label"]) as file:
        file.write_table(table)
    return stream.getvalue()


def read(data: bytes) -> pa.Table:
    return parquet.open_file(pa.BufferReader(data)).read()


def noticed_or_harmless(data: bytes) -> bool:
    """Whether reading fails, or gives the same rows and metadata as the file that is not damaged."""
    try:
        return read(data).equals(TABLE, check_metadata=True)
    except (OSError, ValueError, pa.ArrowException):
        return True


def test_every_flipped_bit_is_noticed_or_changes_nothing():
    data, draw = written(), random.Random(0)
    footer = len(data) - int.from_bytes(data[-8:-4], "little") - 20
    assert read(data).equals(TABLE, check_metadata=True)
    places = [*draw.sample(range(footer), 500), *range(footer, len(data))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        assert noticed_or_harmless(bytes(damaged)), place


@pytest.mark.parametrize("length", [1, 16, 1000])
def test_overwritten_and_cut_files_are_noticed(length):
    data = written()
    for start in range(4, len(data), len(data) // 50):
        end = min(len(data), start + length)
        assert noticed_or_harmless(data[:start] + b"\0" * (end - start) + data[end:])
        with pytest.raises((OSError, ValueError, pa.ArrowException)):
            read(data[:start])


def test_a_footer_of_any_length_is_read():
    wide = pa.table({f"{number:0300d}": [number] for number in range(300)})
    data = written(wide)
    assert int.from_bytes(data[-8:-4], "little") > 1 << 16
    assert read(data).equals(wide)
    middle = bytearray(data)
    middle[-90_000] ^= 1  # In a name of the footer.
    with pytest.raises(ValueError, match="checksum of its footer"):
        read(bytes(middle))


def test_files_of_other_programs_are_read(tmp_path: Path):
    pq.write_table(TABLE, tmp_path / "plain.parquet")
    assert read((tmp_path / "plain.parquet").read_bytes()).equals(TABLE)
    pq.write_table(TABLE, tmp_path / "sums.parquet", write_page_checksum=True, compression="none")
    data = (tmp_path / "sums.parquet").read_bytes()
    with pytest.raises(OSError, match="CRC"):
        read(data.replace(b"cat/00100", b"cat/00101", 1))


def test_the_error_names_the_file_and_the_remedy(tmp_path: Path):
    folder = Folder.open(tmp_path)
    folder.write("index.parquet", written()[:-1])
    message = r"/index\.parquet cannot be read.*; if it is damaged, remove it"
    with pytest.raises(JobError, match=message), parquet.reading(folder, "index.parquet", "remove it"):
        pass
