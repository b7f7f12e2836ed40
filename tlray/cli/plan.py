"""`tlray plan`: what an extraction would cost, here or on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tlray.cli.arguments import Images, option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.tables import table
from tlray.core.config import ExtractConfig
from tlray.core.settings import CLUSTER, IMAGES

if TYPE_CHECKING:
    from tlray.features.throughput import KindThroughput


@command
def plan(
    images: Images,
    config: ExtractConfig,
    ray: OnRay,
    sample: Annotated[
        int, option("--sample N", IMAGES, "Number of images that are read and timed.", min=1)
    ] = 64,
    cluster: Annotated[
        bool,
        option(
            "--cluster",
            CLUSTER,
            "Time the images on one node of each kind of the cluster at --address, instead of here.",
        ),
    ] = False,
) -> Result:
    """Time `tlray extract` on a sample of the images, and estimate how long all of them take.

    It also says what limits the speed, how many GPU hours the job needs, and how much it reads and writes.

    Examples:
        tlray plan photos/
        tlray plan s3://bucket/photos --cluster --address HEAD:6379
    """
    from tlray.features.plan import plan

    result = plan(images, config, sample=sample, cluster=cluster, address=ray.address)
    shape = " x ".join(map(str, result.feature_shape))
    read = "" if result.bytes_read is None else f", {_bytes(result.bytes_read)} to read"
    rows = [
        ("images", f"{result.images:,}{read}"),
        ("sample", f"{result.sample} images, {result.sample_errors} bad, in {result.precision}"),
        *(("nodes" if cluster else "machine", _kind(kind, result.gpus)) for kind in result.kinds),
        ("rate", f"{result.images_per_second:,.1f} images/s, limited by {result.limited_by}"),
        ("time", f"{_time(result.seconds)}, besides about 20 s to start"),
        ("GPU hours", f"{result.gpu_hours:,.2f}"),
        ("features", f"{shape}, {_bytes(result.bytes_written)} to write"),
    ]
    return Result(result, table(rows))


def _kind(kind: KindThroughput, gpus: float) -> str:
    """What nodes of a kind are, hold and take for an image."""
    many = f"{kind.nodes} with " if kind.nodes > 1 else ""
    has = _count(kind.cpus, "core")
    if kind.gpus:
        has += f" and {_count(kind.gpus, 'GPU')}" + (f" ({kind.accelerator})" if kind.accelerator else "")
    each = f"reading {kind.read_ms:.2f} ms, decoding {kind.decode_ms:.2f} ms an image and core"
    if kind.network_ms is None:
        return f"{many}{has}, which decode: {each}"
    network = f"network {kind.network_ms:.2f} ms an image{' and GPU' if gpus else ''}"
    return f"{many}{has}, {_count(kind.actors, 'actor')}: {each}; {network}"


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.1f} TB"
