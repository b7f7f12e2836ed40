"""`make scale`: what an image, a shard and a file cost beside the network, and what grows with their number.

The figures of docs/scale.md come from here. Only `runs` needs the images themselves.
"""

import argparse
import io
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.benchmarks import photographs
from tests.benchmarks.bench import machine, table
from tests.benchmarks.measure import Run, python, tlray
from tests.support.archives import write_parquet, write_tar
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
        loose, tars, table = self.work / "loose", self.work / "tars", self.work / "table.parquet"
        keys = self.work / "keys" / "images.parquet"
        write_loose(loose, few)
        write_tars(tars, few)
        images = [_png(np.zeros((8, 8), np.uint8))] * self.count
        write_parquet(keys, 1000, key=[f"{number:09d}" for number in range(self.count)], image=images)
        paths, labels = zip(*((image.path, image.label) for image in synthetic(self.count)), strict=True)
        write_parquet(table, 100_000, path=paths, label=labels)
        (self.work / paths[0].partition("/")[0]).touch()  # A table without any of its images is refused.
        rows = [
            _row(what, alone(list_images, place), count)
            for what, place, count in (
                (f"{few:,} loose files, {_PER_FOLDER:,} in a folder", loose, few),
                (f"{few:,} members of tar files", tars, few),
                (f"{self.count:,} rows of a Parquet file of images", keys.parent, self.count),
                (f"{self.count:,} rows of a table of paths", table, self.count),
            )
        ]
        return _section("Listing", f"what | {_COST.format('an image')}", rows)

    def index(self) -> str:
        """An index: written, read, gone on with."""
        first = alone(start, self.folder, self.rows)
        size = sum(path.stat().st_size for path in (self.work / "indexed" / "index").iterdir())
        shards = first.value
        rows = [_row("written", first, self.rows)]
        for what, work, arguments in (
            ("opened", Index.open, ()),
            ("read shard by shard", read_shards, (0,)),
            ("the same, all but the last shard done", read_shards, (shards - 1,)),
            ("counted by label", count_labels, ()),
            ("listed again (`--extend`, or a listing that was killed): taken in", compare, (0,)),
            ("the same, and compared with as many", compare, (self.rows,)),
        ):
            rows.append(_row(what, alone(work, self.folder, *arguments), self.rows))
        text = f"{self.rows:,} images, {shards:,} shards, {size / self.rows:.1f} bytes an image."
        return _section("Index", f"what | {_COST.format('an image')}", rows, text)

    def files(self) -> str:
        """The files of a feature set."""
        folder, shards = Folder.open(str(self.work / "files")), self.rows // 1024
        sizes = [8] * shards
        rows = [
            _row(what, alone(work, folder, *arguments), shards)
            for what, work, arguments in (
                (f"{shards:,} files of 8 rows written, every second with an error", write_files, (sizes,)),
                ("named", named, (sizes,)),
                ("reconciled", part_files.reconcile, (sizes, JOB)),
            )
        ]
        return _section("Files", f"what | {_COST.format('a file')}", rows)

    def images(self) -> str:
        """Decoding, the network, and the bytes of features, in the time of one core."""
        photos = photographs.write(self.work / "photographs", 32, None)
        small = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))]
        rows = []
        for size in (photographs.SIZE, (1600, 1200), (4000, 3000)):
            files = [_resized(data, size) for data in small[::4]]
            kilobytes = sum(map(len, files)) / len(files) / 1e3
            times = [f"{alone(decode_all, files, side).value:.1f}" for side in (150, 224)]
            rows.append(f"{size[0]:,} x {size[1]:,}, {kilobytes:,.0f} kB | {' | '.join(times)}")
        text = _section("Decoding", "photographs | ms of a core, for 150 px | for 224 px", rows)
        rows = [
            f"{backbone}, {side} px | {alone(compute, small, backbone, side, precision).value}"
            for backbone, side in (("vgg16", 150), ("vgg16", 224), ("efficientnet-lite0", 224))
            for precision in ("float32", "auto")
        ]
        head = "network | precision | s of a core | shape | bytes, float32 | float16"
        return f"{text}\n{_section('Networks', f'{head} | averaged, float32 | float16', rows)}"

    def runs(self) -> str:
        """All of `tlray extract`, on images of 8 x 8 pixels in tar files."""
        rows = []
        for count in (self.count // 10, self.count):
            images, out = self.work / f"tars-{count}", self.work / f"run-{count}"
            write_tars(images, count)
            command = ("extract", images, "--out", out, *TINY)
            rows.append(_run(f"{count:,} images", tlray(*command, watch=out, memory=True)))
            rows.append(_run("the same again", tlray(*command, memory=True)))
        head = "what | seconds | first row | images/s, steady | driver: ms of CPU a shard | MB | actor: MB"
        return _section("Runs", f"{head} | decoding: MB | Ray's processes: ms of CPU a shard", rows)

    def requests(self) -> str:
        """What an object store is asked, with files of 100 kB."""
        data = np.random.default_rng(0).bytes(101_000)
        archive = self.work / "a.tar"
        write_tar(archive, ((f"{number:06d}.jpg", data) for number in range(2048)))
        with running() as server:
            os.environ.update(server.environment)
            loose = [(f"bucket/loose/{number}.jpg", data) for number in range(64)]
            server.put([("bucket", b""), ("bucket/tar/a.tar", archive.read_bytes()), *loose])
            rows = []

            def asked(what: str, count: int, work: Callable[..., Any], *arguments: Any) -> Any:
                server.requests()
                value = work(*arguments)
                kinds = Counter(request.partition(" ")[0] for request in server.requests())
                counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
                rows.append(f"{what} | {counts} | {kinds.total() / count:.3f}")
                return value

            for kind, count in (("loose", 64), ("tar", 2048)):
                images = Images.open(f"s3://bucket/{kind}")
                listed = asked(f"{count} images listed, {kind}", count, list, images)
                first = listed[:1024]
                asked(f"{len(first)} of them read", len(first), read_all, images.root, first)
            out = Folder.open("s3://bucket/out")
            features = np.random.default_rng(0).random((1024, 1700), np.float32)  # 7 MB: VGG16 at 150 px
            names = pa.table({name: [""] * 1024 for name in ("path", "split", "label")})
            part = (names, iter([features]), (1700,), "float32", {"job": JOB})
            asked("a part written", 1, part_files.write_part, out, 0, *part)
            asked("a part counted", 1, part_files.count_rows, out, [0], JOB)
            writer = IndexWriter.start(out.child("index-of"), synthetic(9000), 32, JOB)
            asked("a piece of the index written", 1, writer.finish)
            asked("two pieces opened", 2, Index.open, writer.index.folder)
        return _section("Requests", "what | requests | for each", rows)

    def shards(self) -> str:
        """What Ray Data costs the driver: shards of one image, through stages that do nothing."""
        command = ("-m", "tests.benchmarks.scale", "--idle", self.rows // 1024, self.work / "idle")
        progress = [tuple(map(float, line.split())) for line in python(*command).output.splitlines()]
        rows = []
        for before, after in pairwise(progress):
            cpu, memory = (1e3 * (after[n] - before[n]) / (after[0] - before[0]) for n in (1, 2))
            rows.append(f"{before[0]:,.0f} to {after[0]:,.0f} | {cpu:.1f} | {memory:.1f} | {after[2]:.0f}")
        return _section("Shards", "shards | ms of CPU a shard | kB a shard | MB in all", rows)


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
    deque(Images.open(str(place)), maxlen=0)


def start(folder: Folder, count: int) -> int:
    writer = IndexWriter.start(folder, synthetic(count), 32, JOB)
    writer.finish()
    return len(writer.index.shard_sizes)


def read_shards(folder: Folder, done: int) -> None:
    deque(map(inference_tasks.pack, Index.open(folder).shards(frozenset(range(done)))), maxlen=0)


def count_labels(folder: Folder) -> None:
    Index.open(folder).count("split", "label")


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


def decode_all(files: list[bytes], side: int) -> float:
    """Milliseconds of a core for one."""
    decoder.decode(files[0], side)
    started = time.process_time()
    for data in files * 4:
        decoder.decode(data, side)
    return 1e3 * (time.process_time() - started) / (4 * len(files))


def compute(files: list[bytes], backbone: str, side: int, precision: Any) -> str:
    """Measure a network; the cells of its row."""
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
    cells = [frozen.provenance.precision, f"{seconds:.3f}", " x ".join(map(str, features.shape[1:]))]
    return " | ".join([*cells, *(f"{size:,.0f}" for size in sizes)])


def _resized(data: bytes, size: tuple[int, int]) -> bytes:
    target = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.resize(size).save(target, "jpeg", quality=92)
    return target.getvalue()


def write_tars(target: Path, count: int) -> None:
    """Tar files of 10,000 grey PNG files of 8 x 8 pixels, a tenth of them different."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 8, 8), np.uint8)
    files = [_png(picture) for picture in pixels]
    for first in range(0, count, _PER_TAR):
        numbers = range(min(_PER_TAR, count - first))
        members = ((f"{number:08d}.png", files[number % len(files)]) for number in numbers)
        write_tar(target / f"{first // _PER_TAR:06d}.tar", members)


def write_loose(target: Path, count: int) -> None:
    """Folders of 1,000 names of one file each."""
    for first in range(0, count, _PER_FOLDER):
        folder = target / f"{first // _PER_FOLDER:06d}"
        folder.mkdir(parents=True)
        whole = folder / "0000.png"
        whole.write_bytes(_png(np.zeros((8, 8), np.uint8)))
        for number in range(1, min(_PER_FOLDER, count - first)):
            os.link(whole, folder / f"{number:04d}.png")


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


_COST = "seconds | CPU seconds | µs of CPU {0} | MB | bytes of memory {0}"


def _row(what: str, cost: Cost, count: int) -> str:
    each = f"{1e6 * cost.cpu / count:.2f} | {cost.megabytes:.0f} | {1e6 * cost.megabytes / count:.1f}"
    return f"{what} | {cost.seconds:.1f} | {cost.cpu:.1f} | {each}"


def _run(what: str, run: Run) -> str:
    shards = run.json.get("shards") or run.json["images"] / 1024
    steady = (run.json["time"] or {}).get("steady_images_per_second")
    first = f"{run.first:.1f}" if run.first == run.first else ""
    memory = " | ".join(f"{run.peaks.get(name, 0):.0f}" for name in ("driver", "actor", "task"))
    cpu, others = (f"{1e3 * run.cpu.get(name, 0) / shards:.1f}" for name in ("driver", "other"))
    rate = f"{steady:,.0f}" if steady else ""
    return f"{what} | {run.seconds:.1f} | {first} | {rate} | {cpu} | {memory} | {others}"


def _section(title: str, head: str, rows: list[str], text: str = "") -> str:
    return "\n".join(["", f"## {title}", "", *([text, ""] if text else []), table(head, rows)])


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
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
