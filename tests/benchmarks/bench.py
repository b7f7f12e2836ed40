"""`make bench`: compares tlray with scripts that people write themselves, and with the limits of the machine.

It writes README.md.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from PIL import Image

from tests.benchmarks import photographs
from tests.benchmarks.measure import Run, python, tlray
from tlray.core.config import NetworkConfig
from tlray.models.compiled import fastest_precision
from tlray.models.frozen import FrozenPart

HERE = Path(__file__).parent
MANY = 1_000_000
"""Files that are listed."""
SECTIONS = ("extraction", "heads", "finetuning", "accuracy", "sizes")


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--photographs",
        type=Path,
        help="a folder with train/ and validation/ of two classes, e.g. cats and dogs",
    )
    parser.add_argument("--fashion-mnist", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument(
        "--work", type=Path, help="a folder for what is measured with; a temporary one if not given"
    )
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="measure these, and only print them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tlray-") as temporary:
        bench = Bench(given.work or Path(temporary), given.photographs, given.fashion_mnist)
        sections = [getattr(bench, name)() for name in given.only or SECTIONS]
    text = TEMPLATE.format(sections="\n".join(filter(None, sections)), machine=machine(), versions=versions())
    if not given.only:
        (HERE / "README.md").write_text(text)
    print(text)


class Bench:
    """The measurements; each returns a section of the page."""

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
            runs[name] = self._extract(f"features-{name}", images, precision)
            limits.append(self._limits())
        loops = {
            count: python(HERE / "classic.py", images, self.weights)
            for count, images in ((1000, self.thousand), (2000, self.two_thousand))
        }
        ideal = {
            precision: 1 / (1 / fmean(found[precision] for found in limits) + 1 / _mean(limits, "decoding"))
            for precision in {"float32", fast}
        }
        rows = []
        for name in limits[0]:
            values = [each[name] for each in limits]
            what = "decoding alone, all cores" if name == "decoding" else f"the network alone, {name}"
            rows.append([what, "", f"{fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})", "", ""])
        for count, loop in loops.items():
            rows.append(
                [f"classic loop, {count:,}", f"{loop.seconds:.1f}", f"{float(loop.output):.1f}", "", "1.00"]
            )
        for name, run in runs.items():
            steady = run.json["time"]["steady_images_per_second"]
            classic = loops[run.json["images"]].seconds
            share = steady / ideal[name.partition(",")[0]]
            rows.append(
                [
                    f"tlray extract, {name}",
                    f"{run.seconds:.1f}",
                    f"{steady:.1f}",
                    f"{share:.2f}",
                    f"{classic / run.seconds:.2f}",
                ]
            )
        head = [
            "what",
            "seconds, cold",
            "images/s, steady",
            "of the ideal",
            "times the classic loop's rate, cold",
        ]
        return EXTRACTION.format(
            table=table(head, rows),
            of=self._photographs(),
            cold=f"{runs[fast].seconds / loops[1000].seconds:.2f}",
            verdict=runs[fast].json["limited_by"],
            first=f"{runs[fast].first:.1f}",
        )

    def heads(self) -> str:
        """A head, beside a plain Keras script."""
        features = self.work / "features-float32"
        theirs = [python(HERE / "keras_head.py", features, self.work / "head.keras") for _ in range(3)]
        ours = [tlray("fit", features, "--out", self.work / f"head-{number}") for number in range(3)]
        epochs = [
            python("-m", "tests.benchmarks.head", features, self.work / f"epochs-{n}") for n in range(3)
        ]
        epoch = median(float(value) for run in theirs for value in run.output.split()[1:])
        mine = median(float(value) for run in epochs for value in run.output.split())
        cold = median(run.seconds for run in theirs), median(run.seconds for run in ours)
        rows = [
            ["plain Keras, arrays in memory", f"{cold[0]:.1f}", f"{epoch:.3f}", "1.00", "1.00"],
            [
                "tlray fit, 1 worker",
                f"{cold[1]:.1f}",
                f"{mine:.3f}",
                f"{cold[1] / cold[0]:.2f}",
                f"{mine / epoch:.2f}",
            ],
        ]
        head = ["what", "seconds, cold", "seconds an epoch", "cold, times Keras", "epoch, times Keras"]
        return HEADS.format(table=table(head, rows))

    def finetuning(self) -> str:
        """An epoch of block 5, beside Keras' own fit of the whole network."""
        found = json.loads(python("-m", "tests.benchmarks.finetune").output)
        rows = [
            [what, f"{found[f'{who}_epoch_seconds']:.1f}", f"{found[f'{who}_first_loss']:.5f}"]
            for what, who in (
                ("Keras, the whole network", "keras"),
                ("Keras, block 5 and the head alone, on features in memory", "tail"),
                ("tlray finetune", "tlray"),
            )
        ]
        text = table(["what", "seconds an epoch", "loss of the first epoch"], rows)
        return FINETUNING.format(table=text, images=found["images"], times=f"{found['times_as_fast']:.1f}")

    def accuracy(self) -> str:
        """What reduced precision costs, if there are labelled photographs to tell."""
        if self.source is None:
            return ""
        rows = []
        for precision in ("float32", "auto"):
            place = self.work / f"accuracy-{precision}"
            options = ["--precision", precision]
            tlray("extract", self.source / "train", "--out", place / "train", *options)
            tlray("extract", self.source / "validation", "--out", place / "validation", *options)
            scores = []
            for seed in range(3):
                model = place / f"model-{seed}"
                head = ["--optimizer", "rmsprop", "--learning-rate", "2e-5", "--batch-size", "20"]
                tlray("fit", place / "train", "--out", model, *head, "--seed", seed)
                scores.append(tlray("evaluate", model, place / "validation").json["accuracy"])
            rows.append([precision, *(f"{score:.3f}" for score in scores), f"{fmean(scores):.4f}"])
        return ACCURACY.format(table=table(["precision", "seed 0", "seed 1", "seed 2", "mean"], rows))

    def sizes(self) -> str:
        """Cost against size: small images, and many files."""
        rows = []
        images = self._fashion()
        for count in (1_000, 10_000, 70_000):
            folder = self.work / f"fashion-{count}"
            for number, path in enumerate(images[:count]):
                _link(path, folder / str(number // 1000) / path.name)
            rows.append(self._size(f"{count:,} images", folder, f"fashion-features-{count}", False))
        few, many = self.work / "listed-10000", self.work / f"listed-{MANY}"
        for folder, count in ((few, 10_000), (many, MANY)):
            for number in range(count):
                _link(images[number % 1000], folder / f"{number // 1000:04d}" / f"{number:07d}.png")
            rows.append(
                self._size(f"{count:,} files, until the first row", folder, folder.name + "-features", True)
            )
        head = [
            "what",
            "first row, seconds",
            "images/s, steady",
            "seconds",
            "driver, MB",
            "actor, MB",
            "decoding, MB",
        ]
        return SIZES.format(table=table(head, rows))

    def _size(self, what: str, folder: Path, out: str, until_first: bool) -> list[str]:
        command = ["extract", folder, "--out", self.work / out, "--backbone", "grey-pixels"]
        run = tlray(*command, watch=self.work / out, memory=True, until_first=until_first)
        done = (
            ["", ""]
            if until_first
            else [f"{run.json['time']['steady_images_per_second']:.0f}", f"{run.seconds:.1f}"]
        )
        memory = [f"{run.peaks.get(name, 0):.0f}" for name in ("driver", "actor", "task")]
        return [what, f"{run.first:.1f}", *done, *memory]

    def _extract(self, name: str, images: Path, precision: str) -> Run:
        out = self.work / name
        return tlray("extract", images, "--out", out, "--precision", precision, watch=out)

    def _limits(self) -> dict[str, float]:
        return dict(json.loads(python("-m", "tests.benchmarks.limits", self.thousand).output))

    def _photographs(self) -> str:
        return "cats and dogs" if self.source else "crops of the two that scikit-learn ships"

    def _fashion(self) -> list[Path]:
        """70,000 grey images of 28 x 28 as PNG files, from Debian's package `dataset-fashion-mnist`."""
        folder = self.work / "fashion"
        folder.mkdir(parents=True)
        pixels = np.concatenate(
            [_idx(self.fashion / f"{name}-images-idx3-ubyte.gz") for name in ("train", "t10k")]
        )
        paths = []
        for number, picture in enumerate(pixels):
            paths.append(folder / f"{number:05d}.png")
            Image.fromarray(picture).save(paths[-1])
        return paths


def _idx(path: Path) -> Any:
    import gzip

    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)


def _link(path: Path, target: Path) -> None:
    if not target.parent.exists():
        target.parent.mkdir(parents=True)
    os.link(path, target)


def _mean(limits: Iterable[dict[str, float]], name: str) -> float:
    return fmean(found[name] for found in limits)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> str:
    """Of all that has a hand in the numbers."""
    from tlray.core import manifest

    return ", ".join(f"{name} {value}" for name, value in manifest.versions().items())


def machine() -> str:
    """The processor of this machine."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return f"{len(models)} cores of {models[0].partition(': ')[2]}, {platform.system()}"


TEMPLATE = """# Benchmarks

`make bench` measures everything on this page and writes the page; `make bench BENCH="--photographs DIR"`
uses your own photographs. It takes about half an hour on two cores. Other programs use the machine too, so
only the ratios count. `docs/speed.md` says what was tried to make tlray fast; `RESULTS.md` has the results
of the recipes.
{sections}
{machine}. {versions}.
"""

EXTRACTION = """
## Extraction

Photographs of 500 x 375 pixels, {of}, go through VGG16 at 150 px, up to `block5_pool`. "Cold" counts from
the start of the command to its end, imports included. "Steady" counts from the first to the last shard. The
classic loop (`classic.py`) resizes with Pillow's nearest-pixel filter, multiplies by 1/255, and calls
`model.predict` in batches of 20, in float32; its rate leaves out the imports. The ideal rate is 1 / (1 /
network alone + 1 / decoding alone) on the same cores. The network and the decoding were measured alone
before and after each run.

{table}

In the fastest precision, 1,000 photographs take {cold} times the classic loop's time, cold. This run was
limited by: {verdict}. Its first part file appeared after {first} s.
"""

HEADS = """
## A head from features

The head `dense-256` is trained with RMSprop in batches of 32, for 30 epochs on 1,000 rows of 8,192 values.
"Cold" counts from the start of the command to the saved model, imports included. Each figure is the median
of 3 runs. The plain script is `keras_head.py`.

{table}
"""

FINETUNING = """
## An epoch of fine-tuning

Block 5 of VGG16 and a head without dropout are trained on {images} images of 150 px, in batches of 20, with
RMSprop in float32. Three ways are compared: Keras' own `fit` of the whole network, with the layers below
block 5 frozen, on pixels in memory; Keras' `fit` of block 5 and the head alone, on features in memory; and
`tlray finetune`, which saves its state after each epoch. tlray is {times} times as fast as Keras on the
whole network.

{table}
"""

ACCURACY = """
## What precision costs

A `dense-256` head is trained on features of each precision (RMSprop, learning rate 2e-5, batches of 20, 30
epochs). The table has its accuracy on the validation images.

{table}
"""

SIZES = """
## Cost against size

Fashion-MNIST, as PNG files of 28 x 28 pixels, goes through the backbone `grey-pixels`, which computes
almost nothing. The last two rows are runs on many files, in folders of 1,000, that were stopped when the
first part file appeared. Memory is the peak of the private memory of one process.

{table}
"""

if __name__ == "__main__":
    main()
