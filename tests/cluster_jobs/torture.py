"""`make torture`: extractions are killed at random moments in four ways, and started again; then every
image must be there exactly once, with the same features as of an extraction that nobody disturbed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.ray_cluster import RayCluster, ray_cluster

KINDS = ("driver", "actor", "node", "everything")
ENDS = ("driver", "everything")
"""The kinds that end the command."""
LATEST = 1.15
"""Kills come until so much of the time of an undisturbed run, so that some come at its very end."""
STALLED = 300.0
"""Seconds without a new file after which a command is taken to hang."""
PATIENCE = 120.0
"""Seconds until nothing may be left of a command: two of Ray's agents take up to a minute to notice."""
ACTOR = "ray::MapWorker(MapBatches(NetworkActor))"
NODES = 2
"""Of the cluster, beside its head, which has no CPUs."""
ON_CLUSTER = 0.3
"""Of the kills that need no cluster: there a writer outlives its driver for longest."""
CLASSES = ("ash", "birch", "cedar")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")


def main() -> int:
    """Torture as asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the kills: their kinds, order and moments")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--images", type=int, default=1500, help="so many are made")
    parser.add_argument("--photographs", type=Path, help="a folder of images, instead")
    parser.add_argument("--backbone", default="small-vggnet")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    # A short path: Ray's sockets lie below it, and theirs may have 107 bytes.
    work = Path(tempfile.mkdtemp(prefix="t"))
    images = given.photographs or write_images(work / "images", given.images)
    options = (
        *("--backbone", given.backbone, "--weights", given.weights, "--image-size", str(given.image_size)),
        *("--batch-size", str(given.batch_size), "--store", "float16", "--max-bad-fraction", "0.5"),
    )
    torture = Torture(Job(work, images, options), draw(given.seed, given.kills, given.kinds))
    torture.run()
    print(f"seed {given.seed}: {torture.summary()}", flush=True)
    if torture.violations:
        print(f"what there was is kept in {work}")
        return 1
    shutil.rmtree(work, ignore_errors=True)
    return 0


def write_images(folder: Path, count: int) -> Path:
    """Small pictures that all differ, in a few classes; one of 50 is broken, in different ways."""
    values = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        width, height = values.integers(60, 160, 2)
        slope = np.linspace(0, 200, width)[None, :, None] * values.uniform(0, 1, 3)
        noise = values.uniform(0, 55, (height, width, 3))
        path = folder / CLASSES[number % len(CLASSES)] / f"{number:06d}.{('jpg', 'png')[number % 2]}"
        Image.fromarray((slope + noise).astype(np.uint8)).save(path)
        if number % 50 == 7:
            whole = path.read_bytes()
            path.write_bytes((whole[: len(whole) // 2], b"", b"<html>no image</html>")[number % 3])
    return folder


@dataclass(frozen=True)
class Kill:
    """What is decided of a kill beforehand; the same for the same seed."""

    kind: str
    moment: float
    """After the start of the command or the kill before, as a fraction of the time of an undisturbed run."""
    choice: float
    """0 to 1: which actor or node."""
    cluster: bool
    """Whether the command is started on the cluster, if this is its first kill."""


def draw(seed: int, count: int, kinds: Sequence[str]) -> list[Kill]:
    """The kills of a seed, with every kind as often."""
    values = random.Random(seed)
    order = [kinds[number % len(kinds)] for number in range(count)]
    values.shuffle(order)
    return [
        Kill(kind, values.uniform(0, LATEST), values.random(), kind == "node" or values.random() < ON_CLUSTER)
        for kind in order
    ]


class ViolationError(Exception):
    """A promise was broken."""


@dataclass(frozen=True)
class Job:
    """What is extracted, and how."""

    work: Path
    """For all files, those of Ray among them."""
    images: Path
    options: tuple[str, ...]

    def files(self) -> set[str]:
        """The images, as paths in a feature set."""
        files = (path for path in self.images.rglob("*") if path.suffix.lower() in SUFFIXES)
        return {path.relative_to(self.images).as_posix() for path in files}


@dataclass(frozen=True)
class Found:
    """What stands in the files of a feature set, by path."""

    times: Counter[str]
    """How often each is there, as a row or an error."""
    rows: dict[str, tuple[str | None, str | None]]
    """Split and label."""
    features: dict[str, npt.NDArray[Any]]
    errors: dict[str, dict[str, str | None]]


def read(out: Path) -> Found:
    """Read a feature set with plain pyarrow.

    Raises:
        ViolationError: a file is not whole.
    """
    found = Found(Counter(), {}, {}, {})
    for part in sorted(out.glob("part-*.parquet")):
        table = _table(part)
        paths, splits, labels = (table[name].to_pylist() for name in ("path", "split", "label"))
        values = table["features"].combine_chunks().to_numpy_ndarray()
        found.times.update(paths)
        found.rows.update(zip(paths, zip(splits, labels, strict=True), strict=True))
        found.features.update(zip(paths, values, strict=True))
    for file in sorted(out.glob("errors/part-*.parquet")):
        for row in _table(file).to_pylist():
            found.times[row["path"]] += 1
            found.errors[row["path"]] = row
    return found


def _table(file: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(file).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise ViolationError(f"{file} cannot be read: {error}") from error


def rows_so_far(out: Path) -> int:
    """The rows of a set that is being written, each of which must be there once.

    Raises:
        ViolationError: a file is not whole, or a row is there twice.
    """
    times: Counter[str] = Counter()
    for part in out.glob("part-*.parquet"):
        times.update(_table(part, ["path"])["path"].to_pylist())
    if twice := sorted(path for path, count in times.items() if count > 1):
        raise ViolationError(f"{out}: there twice: {_some(twice)}")
    return len(times)


def check(out: Path, found: Found, reference: Found, files: set[str]) -> Iterator[str]:
    """What is wrong with a set that is complete."""
    expected = Counter(files)
    if lost := expected - found.times:
        yield f"lost: {_some(lost)}"
    if more := found.times - expected:
        yield f"there too often: {_some(more)}"
    for what in ("rows", "errors"):
        there, wanted = getattr(found, what), getattr(reference, what)
        if wrong := [path for path in {*there, *wanted} if there.get(path) != wanted.get(path)]:
            yield f"other {what} than undisturbed: {_some(wrong)}"
    yield from _check_features(found.features, reference.features)
    yield from _check_manifest(json.loads((out / "manifest.json").read_text()), found, out)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    known = {"manifest.json", *(f"{place}part-" for place in ("", "errors/", "index/"))}
    if left := [name for name in names if not name.startswith(tuple(known)) or name.endswith(".tmp")]:
        yield f"files that were left: {_some(left)}"


def _check_features(there: dict[str, npt.NDArray[Any]], wanted: dict[str, npt.NDArray[Any]]) -> Iterator[str]:
    wrong = [path for path in there if path in wanted and not np.array_equal(there[path], wanted[path])]
    if wrong:
        difference = max(float(np.abs(np.float64(there[path]) - wanted[path]).max()) for path in wrong)
        yield f"features differ by up to {difference:g} in {len(wrong)} rows: {_some(wrong)}"


def _check_manifest(manifest: dict[str, Any], found: Found, out: Path) -> Iterator[str]:
    """Its counts must be those of the files."""
    splits, labels = (Counter(row[place] for row in found.rows.values()) for place in (0, 1))
    del splits[None], labels[None]
    counted = {
        "images": len(found.times),
        "rows": len(found.rows),
        "errors": len(found.errors),
        "splits": splits,
        "rows_per_class": labels,
        "shards": len(list(out.glob("part-*.parquet"))),
    }
    for name, count in counted.items():
        if manifest[name] != count:
            yield f"the manifest says {name} {manifest[name]}, the files {count}"


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _descendants(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children(recursive=True)
    return found


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class Command:
    """A `tlray extract` in a session of its own, by which what it leaves behind is found."""

    number = 0

    def __init__(self, job: Job, out: Path, cluster: RayCluster | None) -> None:
        Command.number += 1
        self.out, self.cluster = out, cluster
        self.log = job.work / f"command-{Command.number}.txt"
        self.ended = float("inf")
        arguments = ["extract", str(job.images), "--out", str(out), *job.options, "--json"]
        environment = {**os.environ, "TMPDIR": str(job.work)}
        if cluster is not None:
            arguments += ["--address", cluster.address]
            environment = {**cluster.environment(), "TMPDIR": str(job.work)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tlray", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.started = self.since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self._everything()
        self.ended = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def can_be_hurt_by(self, kind: str) -> bool:
        return kind != "node" or self.cluster is not None

    def runs_for(self, seconds: float) -> bool:
        """Wait so long after the start or the last kill; whether the command still runs then."""
        while self.process.poll() is None:
            left = self.since + seconds - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, 0.05))
        return False

    def kill(self, kill: Kill) -> bool:
        """Whether there was something to kill before the command ended by itself."""
        if kill.kind == "node":
            assert self.cluster is not None
            workers = self.cluster.running()[1:]  # Never the head.
            self.cluster.stop(workers[int(kill.choice * len(workers))], kill=True)
            self.cluster.start(2)
            done = True
        elif kill.kind == "actor":
            done = self._actor(kill.choice)
        elif kill.kind == "driver":
            self.process.kill()
            done = self.process.wait() == -signal.SIGKILL
        else:
            done = self._everything()
        self.since = time.monotonic()
        return done

    def wait(self) -> int:
        """The exit status.

        Raises:
            ViolationError: nothing happens any more.
        """
        files, changed = -1, time.monotonic()
        while self.process.poll() is None:
            if (now := len(list(self.out.glob("part-*")))) != files:
                files, changed = now, time.monotonic()
            if time.monotonic() - changed > STALLED:
                raise ViolationError(f"{self.out}: no new file within {STALLED:g} s; see {self.log}")
            time.sleep(0.05)
        return self.process.returncode

    def last_words(self) -> str:
        """The last line it printed."""
        lines = self.log.read_text().strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def _everything(self) -> bool:
        family = [psutil.Process(self.process.pid), *_descendants(self.process.pid)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return self.process.wait() == -signal.SIGKILL

    def _actor(self, choice: float) -> bool:
        """Wait for an actor and kill it."""
        nodes = self.cluster.running() if self.cluster else []
        above = [node.process.pid for node in nodes] or [self.process.pid]
        while self.process.poll() is None:
            family = [process for pid in above for process in _descendants(pid)]
            actors = [process for process in family if _title(process).startswith(ACTOR)]
            if actors:
                with suppress(psutil.NoSuchProcess):
                    actors[int(choice * len(actors))].kill()
                    return True
            time.sleep(0.2)
        return False


class Torture:
    """Kills extractions until all kills are done and the last set is complete."""

    def __init__(self, job: Job, kills: Iterable[Kill]) -> None:
        self.job, self.files = job, job.files()
        self.violations: list[str] = []
        self._kills = deque(kills)
        self._done: Counter[str] = Counter()
        self._sets = self._failures = 0
        self._seconds = 0.0
        self._commands: list[Command] = []
        self._stack = ExitStack()
        self._cluster: RayCluster | None = None

    def run(self, *, agents: bool = True) -> None:
        """All of it; what is wrong stands in `violations` then.

        Args:
            agents: at the end, also wait for those of Ray, which take up to a minute after a SIGKILL.
        """
        try:
            self._reference = self._undisturbed()
            while self._kills and len(self.violations) < 3:
                self._sets += 1
                try:
                    self._one_set(self.job.work / f"set-{self._sets}")
                except ViolationError as violation:
                    self._tell_violation(str(violation))
        finally:
            self._stack.close()
        self._check_processes(wait=True, agents=agents)

    def summary(self) -> str:
        """One line on what was done and found."""
        kinds = ", ".join(f"{self._done[kind]} {kind}" for kind in KINDS)
        return (
            f"{self._done.total()} kills ({kinds}), {len(self._commands)} commands, {self._failures} of them "
            f"failed and were run again, {self._sets} sets, {len(self.violations)} violations"
        )

    def _undisturbed(self) -> Found:
        out = self.job.work / "reference"
        with self._start(out, None) as command:
            if command.wait() != 0:
                raise RuntimeError(f"an undisturbed run fails: {command.last_words()}")
            self._seconds = command.seconds
        found = read(out)
        for wrong in check(out, found, found, self.files):
            self._tell_violation(f"{out}, undisturbed: {wrong}")
        parts = len(list(out.glob("part-*.parquet")))
        errors = len(found.errors)
        print(
            f"undisturbed: {len(found.times)} images, {errors} errors, {parts} shards, {self._seconds:.1f} s",
            flush=True,
        )
        return found

    def _start(self, out: Path, cluster: RayCluster | None) -> Command:
        self._commands.append(Command(self.job, out, cluster))
        return self._commands[-1]

    def _one_set(self, out: Path) -> None:
        """Run the command again and again until the set is complete, and check it."""
        while not self._finishes(out):
            pass
        found = read(out)
        wrong = list(check(out, found, self._reference, self.files))
        for text in wrong:
            self._tell_violation(f"{out}: {text}")
        self._check_processes(wait=False)
        print(f"set {self._sets} is complete: {len(found.times)} images, {len(wrong)} violations", flush=True)
        if not wrong:
            shutil.rmtree(out)

    def _finishes(self, out: Path) -> bool:
        """Run the command once, under the next kills; whether it came to its end."""
        with self._start(out, self._cluster_for_next()) as command:
            before = self._done.total()
            while self._kills and command.can_be_hurt_by(self._kills[0].kind):
                kill = self._kills[0]
                if not (command.runs_for(kill.moment * self._seconds) and command.kill(kill)):
                    self._kills[0] = replace(kill, moment=kill.moment / 2)  # Or it might never come.
                    break
                self._kills.popleft()
                self._done[kill.kind] += 1
                self._tell_kill(kill, command)
                if kill.kind in ENDS:
                    break
            status = command.wait()
            hurt = self._done.total() > before
        if status == 1 and hurt:
            self._failures += 1
            print(f"      the command failed: {command.last_words()}", flush=True)
        elif status not in (0, -signal.SIGKILL):
            raise ViolationError(
                f"{out}: the command ended with {status}: {command.last_words()}; see {command.log}"
            )
        return status == 0

    def _cluster_for_next(self) -> RayCluster | None:
        """The cluster, if the next kill is one on it."""
        if not self._kills or not self._kills[0].cluster:
            return None
        if self._cluster is None:
            self._cluster = self._stack.enter_context(ray_cluster([0, *[2] * NODES]))
        return self._cluster

    def _check_processes(self, *, wait: bool, agents: bool = True) -> None:
        """Nothing may be left of commands that ended a while ago."""
        limit = time.monotonic() + PATIENCE
        while True:
            now = time.monotonic()
            over = {
                command.process.pid for command in self._commands if wait or now - command.ended > PATIENCE
            }
            left = [process for process in psutil.process_iter() if _session(process) in over]
            if not agents:
                left = [process for process in left if "Agent" not in _title(process)]
            if not wait or not left or now > limit:
                break
            time.sleep(0.5)
        for process in left:
            self._tell_violation(f"process {process.pid} is left: {_title(process)}")
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _tell_kill(self, kill: Kill, command: Command) -> None:
        """Also look at what there is at this moment."""
        where = "local" if command.cluster is None else "cluster"
        complete, rows = (command.out / "manifest.json").exists(), rows_so_far(command.out)
        print(
            f"{self._done.total():4}  {kill.kind:10}  {where:7}  "
            f"{command.since - command.started:6.1f} s into the run  {rows:6} images done",
            flush=True,
        )
        if complete and rows != len(self._reference.rows):
            raise ViolationError(f"{command.out}: a manifest with {rows} of {len(self._reference.rows)} rows")

    def _tell_violation(self, text: str) -> None:
        self.violations.append(text)
        print(f"VIOLATION: {text}", flush=True)


def _session(process: psutil.Process) -> int:
    """The session of a process that runs; 0 if it has ended."""
    with suppress(psutil.Error, ProcessLookupError):
        if process.status() != psutil.STATUS_ZOMBIE:
            return os.getsid(process.pid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
