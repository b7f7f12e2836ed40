"""`make scale`: what an image, a shard and a file cost beside the network, and what grows with their number.

The figures of docs/scale.md come from here. Only `runs` needs the images themselves.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.benchmarks import photographs
from tests.benchmarks.bench import machine, table, versions
from tests.benchmarks.measure import Run, python, tlray
from tests.support.s3_server import running
from tlray.cluster import session
from tlray.core.config import ExtractConfig
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.features import inference, inference_tasks, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.features.inference_tasks import InferenceJob
from tlray.features.plan import row_bytes
from tlray.images import decoder
from tlray.images.index import Index
from tlray.images.index_diff import COLUMNS, IndexDiff
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed
from tlray.images.reader import Reader
from tlray.models.compiled import compile_network
from tlray.models.frozen import FrozenPart

SECTIONS = ("listing", "index", "files", "requests", "shards", "images", "runs")
TINY = ("--backbone", "grey-pixels", "--image-size", 8)
"""The network that does least, and the smallest rows."""
_PER_TAR, _PER_FOLDER = 10_000, 1_000
_DAY = datetime(2026, 1, 1, tzinfo=UTC)
JOB = {"images": "synthetic"}


class Cost(NamedTuple):
    """What some work took, in a process of its own."""

    seconds: float
    cpu: float
    """Seconds, of all its threads."""
    megabytes: float
    """The most memory, above what there was before."""
    value: Any


def alone(work: Callable[..., Any], *arguments: Any) -> Cost:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_cost, work, *arguments).result()


def _cost(work: Callable[..., Any], *arguments: Any) -> Cost:
    before, started, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    value = work(*arguments)
    return Cost(time.perf_counter() - started, time.process_time() - cpu, _memory("VmHWM") - before, value)


def _memory(name: str) -> float:
    """MB of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1e3


class Scale:
    """The measurements; each returns a section of what is printed."""

    def __init__(self, work: Path, images: int, rows: int) -> None:
        self.work, self.count, self.rows = work, images, rows
        self.folder = Folder.open(str(work / "indexed"))

    def listing(self) -> str:
        """Finding images, and writing them down."""
        few = self.count // 10
        loose, tars = self.work / "loose", self.work / "tars"
        write_loose(loose, few)
        write_tars(tars, few)
        write_table(self.work / "table.parquet", self.count)
        write_keys(self.work / "keys" / "images.parquet", self.count)
        rows = []
        for what, place, count in (
            (f"{few:,} loose files, {_PER_FOLDER:,} in a folder", loose, few),
            (f"{few:,} members of tar files", tars, few),
            (f"{self.count:,} rows of a Parquet file of images", self.work / "keys", self.count),
            (f"{self.count:,} rows of a table of paths", self.work / "table.parquet", self.count),
        ):
            rows.append(_row(what, alone(list_images, place), count))
        return _section("Listing", ["what", *_COST], rows)

    def index(self) -> str:
        """An index: written, read, gone on with."""
        first = alone(start, self.folder, self.rows)
        size = sum(path.stat().st_size for path in (self.work / "indexed" / "index").iterdir())
        shards = first.value
        rows = [_row("written", first, self.rows)]
        for what, work, arguments in (
            ("opened", opened, ()),
            ("read shard by shard", read_shards, (0,)),
            ("the same, all but the last shard done", read_shards, (shards - 1,)),
            ("counted by label", counted, ()),
            ("listed again (`--extend`, or a listing that was killed): taken in", take_in, ()),
            ("the same, and compared with as many", compare, (self.rows,)),
        ):
            rows.append(_row(what, alone(work, self.folder, *arguments), self.rows))
        text = f"{self.rows:,} images, {shards:,} shards, {size / self.rows:.1f} bytes an image."
        return _section("Index", ["what", *_COST], rows, text)

    def files(self) -> str:
        """The files of a feature set."""
        folder, shards = Folder.open(str(self.work / "files")), self.rows // 1024
        sizes = [8] * shards
        written = alone(write_files, folder, sizes)
        rows = [_row(f"{shards:,} files of 8 rows written, every second with an error", written, shards)]
        for what, work in (("named", named), ("reconciled", reconciled)):
            rows.append(_row(what, alone(work, folder, sizes), shards))
        return _section("Files", ["what", *_COST_OF_FILE], rows)

    def images(self) -> str:
        """Decoding, the network, and the bytes of features, in the time of one core."""
        photos = photographs.write(self.work / "photographs", 32, None)
        small = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))]
        rows = []
        for size in (photographs.SIZE, (1600, 1200), (4000, 3000)):
            files = [_resized(data, size) for data in small[::4]]
            kilobytes = sum(map(len, files)) / len(files) / 1e3
            times = [f"{alone(decode_all, files, side).value:.1f}" for side in (150, 224)]
            rows.append([f"{size[0]:,} x {size[1]:,}, {kilobytes:,.0f} kB", *times])
        text = _section("Decoding", ["photographs", "ms of a core, for 150 px", "for 224 px"], rows)
        rows = [
            [f"{backbone}, {side} px", *alone(compute, small, backbone, side, precision).value]
            for backbone, side in (("vgg16", 150), ("vgg16", 224), ("efficientnet-lite0", 224))
            for precision in ("float32", "auto")
        ]
        head = ["network", "precision", "s of a core", "shape", "bytes, float32", "float16"]
        return text + "\n" + _section("Networks", [*head, "averaged, float32", "float16"], rows)

    def runs(self) -> str:
        """All of `tlray extract`, on images of 8 x 8 pixels in tar files."""
        rows = []
        for count in (self.count // 10, self.count):
            images, out = self.work / f"tars-{count}", self.work / f"run-{count}"
            write_tars(images, count)
            command = ("extract", images, "--out", out, *TINY)
            rows.append(_run(f"{count:,} images", tlray(*command, watch=out, memory=True)))
            rows.append(_run("the same again", tlray(*command, memory=True)))
        return _section("Runs", _RUN, rows)

    def requests(self) -> str:
        """What an object store is asked, with files of 100 kB."""
        data = np.random.default_rng(0).bytes(101_000)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for number in range(2048):
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        with running() as server:
            os.environ.update(server.environment)
            loose = [(f"bucket/loose/{number}.jpg", data) for number in range(64)]
            server.put([("bucket", b""), ("bucket/tar/a.tar", archive.getvalue()), *loose])
            rows = []

            def asked(what: str, count: int, work: Callable[..., Any], *arguments: Any) -> Any:
                server.requests()
                value = work(*arguments)
                kinds = Counter(request.partition(" ")[0] for request in server.requests())
                told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
                rows.append([what, told, f"{kinds.total() / count:.3f}"])
                return value

            for kind, count in (("loose", 64), ("tar", 2048)):
                images = Images.open(f"s3://bucket/{kind}")
                listed = asked(f"{count} images listed, {kind}", count, list, images)
                some = listed[:1024]
                asked(f"{len(some)} of them read", len(some), read_all, images.root, some)
            out = Folder.open("s3://bucket/out")
            features = np.random.default_rng(0).random((1024, 1700), np.float32)  # 7 MB: VGG16 at 150 px
            names = pa.table({name: [""] * 1024 for name in ("path", "split", "label")})
            part = (names, iter([features]), (1700,), "float32", {"job": JOB})
            asked("a part written", 1, part_files.write_part, out, 0, *part)
            asked("a part counted", 1, part_files.count_rows, out, [0], JOB)
            writer = IndexWriter.start(out.child("index-of"), synthetic(9000), 32, JOB)
            asked("a piece of the index written", 1, writer.finish)
            asked("two pieces opened", 2, Index.open, writer.index.folder)
        return _section("Requests", ["what", "requests", "for each"], rows)

    def shards(self) -> str:
        """What Ray Data costs the driver: shards of one image, through stages that do nothing."""
        command = ("-m", "tests.benchmarks.scale", "--idle", self.rows // 1024, self.work / "idle")
        found = [tuple(map(float, line.split())) for line in python(*command).output.splitlines()]
        rows = [
            [
                f"{before[0]:,.0f} to {after[0]:,.0f}",
                f"{1e3 * (after[1] - before[1]) / (after[0] - before[0]):.1f}",
                f"{1e3 * (after[2] - before[2]) / (after[0] - before[0]):.1f}",
                f"{after[2]:.0f}",
            ]
            for before, after in pairwise(found)
        ]
        return _section("Shards", ["shards", "ms of CPU a shard", "kB a shard", "MB in all"], rows)


def synthetic(count: int) -> Iterator[Listed]:
    """A listing of images of about 100 kB in tar files of 10,000."""
    for number in range(count):
        archive, member = divmod(number, _PER_TAR)
        size = 50_000 + number * 7919 % 100_003
        path = f"{archive:06d}.tar/{member:08d}.jpg"
        yield Listed(
            path, None, str(archive % 1000), size, _DAY + timedelta(minutes=archive), member * 101_376
        )


def read_all(root: Folder, images: list[Listed]) -> None:
    read = Reader(root)
    for image in images:
        read(image.path, image.offset, image.modified)


def list_images(place: Path) -> None:
    for _ in Images.open(str(place)):
        pass


def start(folder: Folder, count: int) -> int:
    writer = IndexWriter.start(folder, synthetic(count), 32, JOB)
    writer.finish()
    return len(writer.index.shard_sizes)


def opened(folder: Folder) -> None:
    Index.open(folder)


def read_shards(folder: Folder, done: int) -> None:
    for _ in map(inference_tasks.pack, Index.open(folder).shards(frozenset(range(done)))):
        pass


def counted(folder: Folder) -> None:
    Index.open(folder).count("split", "label")


def take_in(folder: Folder) -> None:
    IndexDiff(Index.open(folder).tables(*COLUMNS))


def compare(folder: Folder, count: int) -> None:
    for _ in IndexDiff(Index.open(folder).tables(*COLUMNS)).new(synthetic(count)):
        raise AssertionError("an image is new")


def write_files(folder: Folder, sizes: list[int]) -> None:
    shape, names = (1,), ("path", "split", "label")
    for shard, size in enumerate(sizes):
        bad = shard % 2
        rows = pa.table({name: pa.array([str(row) for row in range(size - bad)]) for name in names})
        features = iter([np.zeros((size - bad, *shape), np.float32)])
        part_files.write_part(folder, shard, rows, features, shape, "float32", {"job": JOB})
        if bad:
            error = {name: ["x"] for name in part_files.ERRORS.names}
            part_files.write_errors(folder, shard, pa.table(error), {"job": JOB})


def named(folder: Folder, sizes: list[int]) -> None:
    assert len([name for name in folder.names() if part_files.shard_of(name) is not None]) == len(sizes)


def reconciled(folder: Folder, sizes: list[int]) -> None:
    part_files.reconcile(folder, sizes, JOB)


def decode_all(files: list[bytes], side: int) -> float:
    """Milliseconds of a core for one."""
    decoder.decode(files[0], side)
    started = time.process_time()
    for data in files * 4:
        decoder.decode(data, side)
    return 1e3 * (time.process_time() - started) / (4 * len(files))


def compute(files: list[bytes], backbone: str, side: int, precision: Any) -> list[str]:
    """What one row of the networks says."""
    frozen = FrozenPart.decide(ExtractConfig(backbone=backbone, image_size=side, precision=precision))
    prepare_keras()
    run = compile_network(frozen.build(), side, frozen.provenance.precision)
    pixels = np.stack([decoder.decode(data, side) for data in files])
    features = run(pixels)
    started = time.process_time()
    for _ in range(4):
        run(pixels)
    seconds = (time.process_time() - started) / (4 * len(files))
    pooled = features.mean(axis=(1, 2)) if features.ndim == 4 else features
    sizes = [row_bytes(values, store) for values in (features, pooled) for store in ("float32", "float16")]
    shape = " x ".join(map(str, features.shape[1:]))
    return [frozen.provenance.precision, f"{seconds:.3f}", shape, *(f"{size:,.0f}" for size in sizes)]


def _resized(data: bytes, size: tuple[int, int]) -> bytes:
    target = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.resize(size).save(target, "jpeg", quality=92)
    return target.getvalue()


def write_tars(target: Path, count: int) -> None:
    """Tar files of 10,000 grey PNG files of 8 x 8 pixels, a tenth of them different."""
    target.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 8, 8), np.uint8)
    files = [_png(picture) for picture in pixels]
    for first in range(0, count, _PER_TAR):
        with tarfile.open(target / f"{first // _PER_TAR:06d}.tar", "w") as archive:
            for number in range(min(_PER_TAR, count - first)):
                member = tarfile.TarInfo(f"{number:08d}.png")
                data = files[number % len(files)]
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_loose(target: Path, count: int) -> None:
    """Folders of 1,000 names of one file each."""
    for first in range(0, count, _PER_FOLDER):
        folder = target / f"{first // _PER_FOLDER:06d}"
        folder.mkdir(parents=True)
        whole = folder / "0000.png"
        whole.write_bytes(_png(np.zeros((8, 8), np.uint8)))
        for number in range(1, min(_PER_FOLDER, count - first)):
            os.link(whole, folder / f"{number:04d}.png")


def write_keys(target: Path, count: int) -> None:
    """A Parquet file with a column of keys and one of images."""
    target.parent.mkdir(parents=True, exist_ok=True)
    image = _png(np.zeros((8, 8), np.uint8))
    with pq.ParquetWriter(target, pa.schema([("key", pa.string()), ("image", pa.binary())])) as writer:
        for first in range(0, count, 1000):
            keys = [f"{number:09d}" for number in range(first, min(count, first + 1000))]
            writer.write_table(pa.table({"key": keys, "image": pa.array([image] * len(keys), pa.binary())}))


def write_table(target: Path, count: int) -> None:
    """A table of the paths of images that are not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("path", pa.string()), ("label", pa.string())])
    images = synthetic(count)
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        while some := list(islice(images, 100_000)):
            columns = [[image.path for image in some], [image.label for image in some]]
            writer.write_table(pa.table(columns, schema=schema))


def _png(pixels: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


def idle(count: int, out: str) -> None:
    """Print shards done, CPU seconds and MB of this process, as so many pass."""
    folder = Folder.open(out)
    writer = IndexWriter.start(folder, synthetic(count), 1, JOB, copies=1024)
    writer.finish()
    work = InferenceJob(
        root=folder,
        index=writer.index,
        out=folder,
        settings=ExtractConfig(),
        image_size=1,
        batch_size=1,
        store="float32",
        metadata={"job": JOB},
        packages={},
    )

    def progress(done: int, total: int) -> None:
        if done >= 100 and (done - 100) % ((count - 100) // 4) == 0:  # The first ones start processes.
            print(done, time.process_time(), _memory("VmRSS"))

    inference.decode_shard, inference.NetworkActor = _pass_on, _Idle  # type: ignore[assignment, misc]
    with session.connect(None) as connected:
        inference.run(work, writer, lambda: None, progress, connected)  # type: ignore[arg-type, return-value]


def _pass_on(row: pa.Table, job: InferenceJob) -> pa.Table:
    return row


class _Idle:
    """In the place of the actor."""

    def __init__(self, job: InferenceJob, load_network: Callable[[], Any]) -> None:
        pass

    def __call__(self, row: pa.Table) -> pa.Table:
        now = time.time()
        place = ("actor" * 8, "node" * 8, "host", "CPU")
        return pa.Table.from_pylist([vars(ShardTiming(1, 0, 0.0, 0.0, 0.0, 0.0, *place, now, now))])


_COST = ("seconds", "CPU seconds", "µs of CPU an image", "MB", "bytes of memory an image")
_COST_OF_FILE = ("seconds", "CPU seconds", "µs of CPU a file", "MB", "bytes of memory a file")
_RUN = [
    *("what", "seconds", "first row", "images/s, steady", "driver: ms of CPU a shard", "MB"),
    *("actor: MB", "decoding: MB", "Ray's processes: ms of CPU a shard"),
]


def _row(what: str, cost: Cost, count: int) -> list[str]:
    each = f"{1e6 * cost.cpu / count:.2f}", f"{cost.megabytes:.0f}", f"{1e6 * cost.megabytes / count:.1f}"
    return [what, f"{cost.seconds:.1f}", f"{cost.cpu:.1f}", *each]


def _run(what: str, run: Run) -> list[str]:
    shards = run.json.get("shards") or run.json["images"] / 1024
    steady = (run.json["time"] or {}).get("steady_images_per_second")
    return [
        what,
        f"{run.seconds:.1f}",
        f"{run.first:.1f}" if run.first == run.first else "",
        f"{steady:,.0f}" if steady else "",
        f"{1e3 * run.cpu['driver'] / shards:.1f}",
        f"{run.peaks['driver']:.0f}",
        *(f"{run.peaks.get(name, 0):.0f}" for name in ("actor", "task")),
        f"{1e3 * run.cpu.get('other', 0) / shards:.1f}",
    ]


def _section(title: str, head: list[str], rows: list[list[str]], text: str = "") -> str:
    return "\n".join(["", f"## {title}", "", *([text, ""] if text else []), table(list(head), rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000, help="the most that are extracted")
    parser.add_argument("--rows", type=int, default=10_000_000, help="in what is done without images")
    parser.add_argument("--work", type=Path, help="a folder for it all; a temporary one if not given")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--idle", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.idle:
        idle(int(given.idle[0]), given.idle[1])
        return
    with tempfile.TemporaryDirectory(prefix="tlray-") as temporary:
        scale = Scale(given.work or Path(temporary), given.images, given.rows)
        for name in given.only:
            print(getattr(scale, name)(), flush=True)
    print(f"\n{machine()}. {versions()}.")


if __name__ == "__main__":
    main()
