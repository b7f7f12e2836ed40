"""`tlray plan`: an estimate of what an extraction takes, here or on a cluster."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

from tlray.cli.arguments import Images, option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import AccountPrinter
from tlray.cli.summaries import amount
from tlray.cli.tables import table
from tlray.core.config import ExtractConfig
from tlray.core.settings import CLUSTER, IMAGES
from tlray.core.settings import option as option_name

if TYPE_CHECKING:
    from tlray.features.throughput import KindThroughput


@command
def plan(
    images: Images,
    config: ExtractConfig,
    ray: OnRay,
    sample: Annotated[int, option("--sample N", IMAGES, "Number of images that are read and timed.")] = 64,
    cluster: Annotated[
        bool,
        option(
            "--cluster",
            CLUSTER,
            "Time the sample on one node of each type of hardware in the cluster at --address.",
        ),
    ] = False,
) -> Result:
    """Time `tlray extract` on a sample of the images, and estimate how long all of them take.

    It also says what limits the speed, how many GPU hours the job needs, and how much it reads and writes.
    Options that do not change the cost, such as --split, are only passed on to the command that it prints.

    Examples:
        tlray plan photos/
        tlray plan s3://bucket/photos --cluster --address HEAD:6379
    """
    from rich.filesize import decimal

    from tlray.features.plan import plan

    result = plan(
        images, config, sample=sample, cluster=cluster, address=ray.address, announce=AccountPrinter()
    )
    size = "" if result.bytes_read is None else f", {decimal(result.bytes_read)} to read"
    hours, minutes = result.seconds / 3600, result.seconds / 60
    duration = f"{hours:,.1f} hours" if hours >= 1 else f"{minutes:,.1f} minutes"
    shape = " x ".join(map(str, result.feature_shape))
    rows = [
        ("images", f"{result.images:,}{size}"),
        ("sample", f"{amount(result.sample, 'image')}, {result.sample_errors} of them bad"),
        ("precision", result.precision),
        *(("nodes" if cluster else "machine", _kind(kind, result.gpus)) for kind in result.kinds),
        ("speed", f"{result.images_per_second:,.1f} images/s, limited by {result.limited_by}"),
        ("time", f"{duration}, and about 20 s to start"),
        ("GPU hours", f"{result.gpu_hours:,.2f}"),
        ("features", f"{shape} per image, {decimal(result.bytes_written)} to write"),
    ]
    words = ["tlray", "extract", images, "--out", "features"]
    words += [f"{option_name(k)}={v}" for k, v in vars(config).items() if v != getattr(ExtractConfig, k)]
    words += [f"--address={ray.address}"] if cluster else []
    return Result(result, table(rows), shlex.join(words))


def _kind(kind: KindThroughput, gpus: float) -> str:
    """The hardware of a kind of node, and the time that it takes for one image."""
    nodes = f"{kind.nodes} with " if kind.nodes > 1 else ""
    hardware = amount(kind.cpus, "core")
    if kind.gpus:
        model = f" ({kind.accelerator})" if kind.accelerator else ""
        hardware += f" and {amount(kind.gpus, 'GPU')}{model}"
    times = f"an image takes {kind.read_ms:.2f} ms to read and {kind.decode_ms:.2f} ms to decode on a core"
    if kind.network_ms is None:
        return f"{nodes}{hardware}, which only decode: {times}"
    network = f"{kind.network_ms:.2f} ms in the network{' on a GPU' if gpus else ''}"
    return f"{nodes}{hardware}, {amount(kind.actors, 'actor')}: {times}, {network}"
