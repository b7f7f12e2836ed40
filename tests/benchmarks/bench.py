"""`make bench`: compares tlray with scripts that people write themselves, and with the limits of the machine.

It writes the tables of README.md.
"""

import argparse
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from statistics import fmean, median

import numpy as np
from PIL import Image

from tests.benchmarks import photographs
from tests.benchmarks.measure import Run, python, tlray
from tlray.core import manifest
from tlray.core.config import NetworkConfig
from tlray.models.compiled import fastest_precision
from tlray.models.frozen import FrozenPart

HERE = Path(__file__).parent
MANY = 1_000_000
"""Files that are listed."""
SECTIONS = {
    "extraction": "Extraction",
    "heads": "A head from features",
    "finetuning": "An epoch of fine-tuning",
    "accuracy": "What precision costs",
    "sizes": "Cost against size",
}
"""The headings of README.md."""


def main() -> None:
    """Measure, print the tables, and write them to the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    photos = "a folder with train/ and validation/ of two classes, e.g. cats and dogs"
    parser.add_argument("--photographs", type=Path, help=photos)
    parser.add_argument("--fashion-mnist", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--work", type=Path, help="a folder for the data; a temporary one if not given")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="measure these, and only print them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tlray-") as temporary:
        bench = Bench(given.work or Path(temporary), given.photographs, given.fashion_mnist)
        tables = {}
        for name in given.only or SECTIONS:
            tables[SECTIONS[name]] = getattr(bench, name)()
            print(f"{tables[SECTIONS[name]]}\n", flush=True)
    if not given.only:
        rewrite(HERE / "README.md", tables)


class Bench:
    """The measurements; each returns a table of the page."""

    def __init__(self, work: Path, source: Path | None, fashion: Path) -> None:
        self.work, self.source, self.fashion = work, source, fashion
        train = source / "train" if source else None
        self.thousand = photographs.write(work / "photographs-1000", 1000, train)
        self.two_thousand = photographs.write(work / "photographs-2000", 2000, train)
        self.weights = work / "weights.npz"
        np.savez(self.weights, *FrozenPart.decide(NetworkConfig()).arrays)

    def extraction(self) -> str:
        """From the command to the finished set, beside the classic loop and the bare limits."""
        limits = [self._limits()]
        runs: dict[str, Run] = {}
        fast = fastest_precision()
        for name, images, precision in (
            ("float32", self.thousand, "float32"),
            (fast, self.thousand, "auto"),
            (f"{fast}, 2,000", self.two_thousand, "auto"),
        ):
            out = self.work / f"features-{name}"
            runs[name] = tlray("extract", images, "--out", out, "--precision", precision, watch=out)
            limits.append(self._limits())
        loops = {
            count: python(HERE / "classic.py", images, self.weights)
            for count, images in ((1000, self.thousand), (2000, self.two_thousand))
        }
        rates = {name: [measured[name] for measured in limits] for name in limits[0]}
        rows = []
        for name, values in rates.items():
            what = "decoding alone, all cores" if name == "decoding" else f"the network alone, {name}"
            rows.append(f"{what} |  | {fmean(values):.1f} ({min(values):.1f} to {max(values):.1f}) |  | ")
        for count, loop in loops.items():
            rows.append(f"classic loop, {count:,} | {loop.seconds:.1f} | {float(loop.output):.1f} |  | 1.00")
        for name, run in runs.items():
            steady = run.json["time"]["steady_images_per_second"]
            classic = loops[run.json["images"]].seconds
            ideal = 1 / (1 / fmean(rates[name.partition(",")[0]]) + 1 / fmean(rates["decoding"]))
            times = f"{steady / ideal:.2f} | {classic / run.seconds:.2f}"
            what = f"tlray extract, {name} (limited by: {run.json['limited_by']})"
            rows.append(f"{what} | {run.seconds:.1f} | {steady:.1f} | {times}")
        rows.append(f"tlray extract, {fast}, to the first part file | {runs[fast].first:.1f} |  |  | ")
        images = "cats and dogs" if self.source else "crops of the photographs of scikit-learn"
        head = f"{images} | seconds, cold | images/s, steady | of the ideal"
        return table(f"{head} | times the classic loop's rate, cold", rows)

    def heads(self) -> str:
        """A head, beside a plain Keras script."""
        features = self.work / "features-float32"
        scripts = [python(HERE / "keras_head.py", features, self.work / "head.keras") for _ in range(3)]
        fits = [tlray("fit", features, "--out", self.work / f"head-{n}") for n in range(3)]
        module = "tests.benchmarks.head"
        epochs = [python("-m", module, features, self.work / f"epochs-{n}") for n in range(3)]
        keras = median(float(value) for run in scripts for value in run.output.split()[1:])
        ours = median(float(value) for run in epochs for value in run.output.split())
        cold = [median(run.seconds for run in runs) for runs in (scripts, fits)]
        times = f"{cold[1] / cold[0]:.2f} | {ours / keras:.2f}"
        rows = [
            f"plain Keras, arrays in memory | {cold[0]:.1f} | {keras:.3f} | 1.00 | 1.00",
            f"tlray fit, 1 worker | {cold[1]:.1f} | {ours:.3f} | {times}",
        ]
        return table("what | seconds, cold | seconds an epoch | cold, times Keras | epoch, times Keras", rows)

    def finetuning(self) -> str:
        """An epoch of block 5, beside Keras' own fit of the whole network."""
        runs = json.loads(python("-m", "tests.benchmarks.finetune").output)
        slowest = max(run["seconds"] for run in runs.values())
        rows = [
            f"{what} | {run['seconds']:.1f} | {slowest / run['seconds']:.1f} | {run['loss']:.5f}"
            for what, run in runs.items()
        ]
        return table("what | seconds an epoch | times as fast | loss of the first epoch", rows)

    def accuracy(self) -> str:
        """What reduced precision costs, if there are labelled photographs to tell."""
        rows = []
        for precision in ("float32", "auto") if self.source else ():
            place = self.work / f"accuracy-{precision}"
            options = ["--precision", precision]
            tlray("extract", self.source / "train", "--out", place / "train", *options)
            tlray("extract", self.source / "validation", "--out", place / "validation", *options)
            head = ["--optimizer", "rmsprop", "--learning-rate", "2e-5", "--batch-size", "20"]
            scores = []
            for seed in range(3):
                model = place / f"model-{seed}"
                tlray("fit", place / "train", "--out", model, *head, "--seed", seed)
                scores.append(tlray("evaluate", model, place / "validation").json["accuracy"])
            each = " | ".join(f"{score:.3f}" for score in scores)
            rows.append(f"{precision} | {each} | {fmean(scores):.4f}")
        return table("precision | seed 0 | seed 1 | seed 2 | mean", rows)

    def sizes(self) -> str:
        """Cost against size: small images, and many files."""
        rows = []
        images = self._fashion()
        for count in (1_000, 10_000, 70_000):
            folder = self.work / f"fashion-{count}"
            for number, path in enumerate(images[:count]):
                _link(path, folder / str(number // 1000) / path.name)
            rows.append(self._size(f"{count:,} images", folder, f"fashion-features-{count}", False))
        for count in (10_000, MANY):
            folder = self.work / f"listed-{count}"
            for number in range(count):
                _link(images[number % 1000], folder / f"{number // 1000:04d}" / f"{number:07d}.png")
            what = f"{count:,} files, until the first row"
            rows.append(self._size(what, folder, f"{folder.name}-features", True))
        head = "what | first row, seconds | images/s, steady | seconds"
        return table(f"{head} | driver, MB | actor, MB | decoding, MB", rows)

    def _size(self, what: str, folder: Path, out: str, until_first: bool) -> str:
        command = ["extract", folder, "--out", self.work / out, "--backbone", "grey-pixels"]
        run = tlray(*command, watch=self.work / out, memory=True, until_first=until_first)
        whole = " | "
        if not until_first:
            whole = f"{run.json['time']['steady_images_per_second']:.0f} | {run.seconds:.1f}"
        memory = " | ".join(f"{run.peaks.get(name, 0):.0f}" for name in ("driver", "actor", "task"))
        return f"{what} | {run.first:.1f} | {whole} | {memory}"

    def _limits(self) -> dict[str, float]:
        return dict(json.loads(python("-m", "tests.benchmarks.limits", self.thousand).output))

    def _fashion(self) -> list[Path]:
        """The 70,000 images of Fashion-MNIST as PNG files."""
        folder = self.work / "fashion"
        folder.mkdir(parents=True)
        images = [photographs.fashion_mnist(self.fashion, split) for split in ("train", "t10k")]
        paths = []
        for number, (pixels, _) in enumerate(chain(*images)):
            paths.append(folder / f"{number:05d}.png")
            Image.fromarray(pixels).save(paths[-1])
        return paths


def _link(path: Path, target: Path) -> None:
    if not target.parent.exists():
        target.parent.mkdir(parents=True)
    os.link(path, target)


def table(head: str, rows: Iterable[str]) -> str:
    """A table in Markdown, of lines without their outer bars."""
    lines = [head, " | ".join("---" for _ in head.split(" | ")), *rows]
    return "\n".join(f"| {line} |" for line in lines)


def machine() -> str:
    """The processor of this machine, and the versions of all that has a hand in the numbers."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {value}" for name, value in manifest.versions().items())
    return f"{len(models)} cores of {models[0]}, {platform.system()}. {versions}."


def rewrite(page: Path, tables: Mapping[str, str]) -> None:
    """Replace the table below each of these headings of a page, and its last line."""
    text = page.read_text()
    for heading, table in tables.items():
        start = text.index("\n|", text.index(f"# {heading}\n")) + 1
        text = text[:start] + table + text[text.index("\n\n", start) :]
    page.write_text(text[: text.rstrip().rindex("\n") + 1] + machine() + "\n")


if __name__ == "__main__":
    main()
