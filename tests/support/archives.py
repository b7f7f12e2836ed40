"""Tar and Parquet files full of images, as others write them."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Member = tuple[str, bytes]


def write_tar(path: Path, members: Iterable[Member | tarfile.TarInfo], **how: Any) -> str:
    """A tar file of these members, as Python writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return str(path)


def write_parquet(path: Path, groups: int | None = None, /, metadata: Any = None, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=groups)
    return str(path)


def hugging_face(path: Path, images: list[bytes | None], labels: list[int], names: list[str]) -> str:
    """A Parquet file as Hugging Face's datasets write it, with metadata of their form."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = pa.array([{"bytes": data, "path": f"{row}.jpg"} for row, data in enumerate(images)], kind)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return write_parquet(path, metadata=metadata, image=image, label=labels)
