"""`tlray plan`: what an extraction would cost."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli.arguments import Images
from tlray.cli.options import Result, command
from tlray.config import ExtractConfig


@command
def plan(
    images: Images,
    config: ExtractConfig,
    sample: Annotated[int, typer.Option(min=1, help="how many images are timed")] = 64,
) -> Result:
    """Time a sample of the images here and say how long all take, how many bytes, how many GPU hours."""
    from tlray.plan import plan

    found = plan(images, config, sample=sample)
    shape = " x ".join(map(str, found["feature_shape"]))
    read = "" if found["bytes_read"] is None else f", {_bytes(found['bytes_read'])} to read"
    rows = [
        ("images", f"{found['images']:,}{read}"),
        (
            "sample",
            f"{found['sample']} images, {found['sample_errors']} bad; reading {found['read_ms']:.2f} ms and "
            f"decoding {found['decode_ms']:.2f} ms an image and core",
        ),
        ("network", f"{found['network_ms']:.2f} ms an image in {found['precision']}"),
        (
            "machine",
            f"{found['cores']} cores, {found['gpus']} GPUs: {found['images_per_second']:.1f} images/s",
        ),
        ("time", f"{found['seconds'] / 3600:.2f} hours, besides about 20 s to start"),
        ("GPU hours", f"{found['gpu_hours']:.2f}"),
        ("features", f"{shape}, {_bytes(found['bytes_written'])} to write"),
    ]
    return Result(found, "\n".join(f"{name:<10} {text}" for name, text in rows))


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.1f} TB"
