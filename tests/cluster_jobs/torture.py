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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support import processes
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
OPTIONS = ("--backbone", "small-vggnet", "--image-size", "96", "--max-bad-fraction", "0.5", "--json")
PARTS, ERRORS = "part-*.parquet", "errors/part-*.parquet"


def main() -> int:
    """Torture as asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the kills: their kinds, order and moments")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--images", type=int, default=1500, help="so many are made")
    given = parser.parse_args()
    # A short path: Ray's sockets lie below it, and theirs may have 107 bytes.
    work = Path(tempfile.mkdtemp(prefix="t"))
    torture = Torture(work, given.images, draw(given.seed, given.kills))
    torture.run()
    print(f"seed {given.seed}: {torture.summary()}", flush=True)
    if torture.violations:
        print(f"what there was is kept in {work}")
        return 1
    shutil.rmtree(work, ignore_errors=True)
    return 0


def write_images(folder: Path, count: int) -> set[str]:
    """Small pictures that all differ, in a few classes; one of 50 is broken, in different ways.

    Returns:
        The paths of all.
    """
    values, paths = np.random.default_rng(0), set()
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        width, height = values.integers(60, 160, 2)
        slope = np.linspace(0, 200, width)[None, :, None] * values.uniform(0, 1, 3)
        noise = values.uniform(0, 55, (height, width, 3))
        paths.add(name := f"{CLASSES[number % len(CLASSES)]}/{number:06d}.{('jpg', 'png')[number % 2]}")
        Image.fromarray((slope + noise).astype(np.uint8)).save(folder / name)
        if number % 50 == 7:
            whole = (folder / name).read_bytes()
            broken = (whole[: len(whole) // 2], b"", b"<html>no image</html>")
            (folder / name).write_bytes(broken[number % 3])
    return paths


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


def draw(seed: int, count: int) -> list[Kill]:
    """The kills of a seed, with every kind as often."""
    values = random.Random(seed)
    order = [KINDS[number % len(KINDS)] for number in range(count)]
    values.shuffle(order)
    return [
        Kill(kind, values.uniform(0, LATEST), values.random(), kind == "node" or values.random() < ON_CLUSTER)
        for kind in order
    ]


class ViolationError(Exception):
    """A promise was broken."""


def read(out: Path, files: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a set in these files, sorted by path; with plain pyarrow.

    Raises:
        ViolationError: a file is not whole.
    """
    tables = []
    for file in out.glob(files):
        try:
            tables.append(pq.ParquetFile(file).read(columns))
        except (OSError, pa.ArrowException) as error:
            raise ViolationError(f"{file} cannot be read: {error}") from error
    return pa.concat_tables(tables or [pa.table({"path": pa.array([], pa.string())})]).sort_by("path")


def rows_so_far(out: Path) -> int:
    """The rows of a set that is being written, each of which must be there once.

    Raises:
        ViolationError: a file is not whole, or a row is there twice.
    """
    times = Counter(read(out, PARTS, ["path"])["path"].to_pylist())
    if twice := [path for path, count in times.items() if count > 1]:
        raise ViolationError(f"{out}: there twice: {_first(twice)}")
    return len(times)


def check(out: Path, reference: Path, paths: set[str]) -> Iterator[str]:
    """What is wrong with a set that is complete."""
    rows, errors = read(out, PARTS), read(out, ERRORS)
    expected, times = Counter(paths), Counter([*rows["path"].to_pylist(), *errors["path"].to_pylist()])
    if lost := expected - times:
        yield f"lost: {_first(lost)}"
    if more := times - expected:
        yield f"there too often: {_first(more)}"
    yield from _differences(rows, read(reference, PARTS))
    yield from _differences(errors, read(reference, ERRORS))
    counts = {"images": times.total(), "rows": rows.num_rows, "errors": errors.num_rows}
    counts["shards"] = len(list(out.glob(PARTS)))
    for name, column in (("splits", "split"), ("rows_per_class", "label")):
        counts[name] = dict(Counter(filter(None, rows[column].to_pylist())))
    manifest = json.loads((out / "manifest.json").read_text())
    if (said := {name: manifest[name] for name in counts}) != counts:
        yield f"the manifest says {said}, the files {counts}"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    known = ("manifest.json", "part-", "errors/part-", "index/part-")
    if left := [name for name in names if not name.startswith(known) or name.endswith(".tmp")]:
        yield f"files that were left: {_first(left)}"


def _differences(table: pa.Table, expected: pa.Table) -> Iterator[str]:
    """The columns in which rows are not what they are undisturbed."""
    if not table["path"].equals(expected["path"]):
        yield "other rows or errors than undisturbed"
        return
    for name in expected.column_names:
        pairs = zip(table["path"].to_pylist(), _values(table[name]), _values(expected[name]), strict=True)
        if wrong := [path for path, value, other in pairs if not np.array_equal(value, other)]:
            yield f"another {name} than undisturbed in {len(wrong)} rows: {_first(wrong)}"


def _values(column: pa.ChunkedArray) -> Iterable[Any]:
    array = column.combine_chunks()
    is_tensor = isinstance(array, pa.FixedShapeTensorArray)
    return array.to_numpy_ndarray() if is_tensor else array.to_pylist()


def _first(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


class Command:
    """A `tlray extract` in a session of its own, by which what it leaves behind is found."""

    number = 0

    def __init__(self, work: Path, out: Path, cluster: RayCluster | None) -> None:
        Command.number += 1
        self.out, self.cluster = out, cluster
        self.log = work / f"command-{Command.number}.txt"
        self.ended = float("inf")
        place = [] if cluster is None else ["--address", cluster.address]
        environment = os.environ if cluster is None else cluster.environment()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tlray", "extract", work / "images", "--out", out, *OPTIONS, *place],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "TMPDIR": str(work)},
                start_new_session=True,
            )
        self.started = self.since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self._everything()
        self.ended = time.monotonic()

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
        return (self.log.read_text().strip() or "it printed nothing").splitlines()[-1]

    def _everything(self) -> bool:
        processes.kill(processes.family(self.process.pid))
        return self.process.wait() == -signal.SIGKILL

    def _actor(self, choice: float) -> bool:
        """Wait for an actor and kill it."""
        nodes = self.cluster.running() if self.cluster else []
        above = [node.process.pid for node in nodes] or [self.process.pid]
        while self.process.poll() is None:
            members = [process for pid in above for process in processes.family(pid)]
            if actors := [process for process in members if processes.title(process).startswith(ACTOR)]:
                processes.kill([actors[int(choice * len(actors))]])
                return True
            time.sleep(0.2)
        return False


class Torture:
    """Kills extractions until all kills are done and the last set is complete."""

    def __init__(self, work: Path, images: int, kills: Iterable[Kill]) -> None:
        """Args: a folder for all files, those of Ray among them; how many images; what is done to them."""
        self.work, self.reference = work, work / "reference"
        self.paths = write_images(work / "images", images)
        self.violations: list[str] = []
        self._kills = deque(kills)
        self._done: Counter[str] = Counter()
        self._sets = self._failures = 0
        self._commands: list[Command] = []
        self._stack = ExitStack()
        self._cluster: RayCluster | None = None

    def run(self, *, agents: bool = True) -> None:
        """All of it; what is wrong stands in `violations` then.

        Args:
            agents: at the end, also wait for those of Ray, which take up to a minute after a SIGKILL.
        """
        try:
            self._seconds = self._undisturbed()
            self._rows = rows_so_far(self.reference)
            while self._kills and len(self.violations) < 3:
                self._sets += 1
                try:
                    self._one_set(self.work / f"set-{self._sets}")
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

    def _undisturbed(self) -> float:
        """The seconds that it takes."""
        with self._start(self.reference, None) as command:
            if command.wait() != 0:
                raise RuntimeError(f"an undisturbed run fails: {command.last_words()}")
        seconds = command.ended - command.started
        for wrong in check(self.reference, self.reference, self.paths):
            self._tell_violation(f"{self.reference}, undisturbed: {wrong}")
        print(f"undisturbed: {len(self.paths)} images, {seconds:.1f} s", flush=True)
        return seconds

    def _start(self, out: Path, cluster: RayCluster | None) -> Command:
        self._commands.append(Command(self.work, out, cluster))
        return self._commands[-1]

    def _one_set(self, out: Path) -> None:
        """Run the command again and again until the set is complete, and check it."""
        while not self._finishes(out):
            pass
        wrong = list(check(out, self.reference, self.paths))
        for text in wrong:
            self._tell_violation(f"{out}: {text}")
        self._check_processes(wait=False)
        print(f"set {self._sets} is complete: {len(wrong)} violations", flush=True)
        if not wrong:
            shutil.rmtree(out)

    def _finishes(self, out: Path) -> bool:
        """Run the command once, under the next kills; whether it came to its end."""
        with self._start(out, self._cluster_for_next()) as command:
            before = self._done.total()
            while self._kills and command.can_be_hurt_by(self._kills[0].kind):
                kill = self._kills[0]
                if not (command.runs_for(kill.moment * self._seconds) and command.kill(kill)):
                    # With the same moment the kill might never come.
                    self._kills[0] = replace(kill, moment=kill.moment / 2)
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
            reason = f"the command ended with {status}: {command.last_words()}; see {command.log}"
            raise ViolationError(f"{out}: {reason}")
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
            over = [command for command in self._commands if wait or now - command.ended > PATIENCE]
            left = processes.of_session(*(command.process.pid for command in over))
            left = [process for process in left if agents or "Agent" not in processes.title(process)]
            if not wait or not left or now > limit:
                break
            time.sleep(0.5)
        for process in left:
            self._tell_violation(f"process {process.pid} is left: {processes.title(process)}")
        processes.kill(left)

    def _tell_kill(self, kill: Kill, command: Command) -> None:
        """Also look at what there is at this moment."""
        where = "local" if command.cluster is None else "cluster"
        complete, rows = (command.out / "manifest.json").exists(), rows_so_far(command.out)
        seconds = f"{command.since - command.started:6.1f} s into the run"
        print(f"{self._done.total():4}  {kill.kind:10}  {where:7}  {seconds}  {rows:6} images", flush=True)
        if complete and rows != self._rows:
            raise ViolationError(f"{command.out}: a manifest with {rows} of {self._rows} rows")

    def _tell_violation(self, text: str) -> None:
        self.violations.append(text)
        print(f"VIOLATION: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
