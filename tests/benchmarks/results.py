"""`make results`: runs every recipe on real photographs, and writes RESULTS.md beside this file.

The data are not part of the project, so the options name their folders. The work folder keeps every run;
a run that is there already is not repeated.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.benchmarks.bench import machine, versions

HERE = Path(__file__).parent
NO_TEST = ["--set", "report.split=validation"]
"""The photographs have no test split."""


def main() -> None:
    """Run what has not been run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cats-dogs", type=Path, required=True, help="with train/ and validation/")
    parser.add_argument("--hymenoptera", type=Path, required=True, help="with train/ants and train/bees")
    parser.add_argument("--fashion-mnist", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--work", type=Path, required=True, help="folder for images, models and results")
    parser.add_argument("--only", nargs="*", help="recipes to run now, in this order; all if not given")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data: dict[str, Callable[[], Path]] = {
        "all": lambda: given.cats_dogs,
        "part": lambda: _part(given.cats_dogs, given.work / "part"),
        "three": lambda: _three(given.cats_dogs, given.hymenoptera, given.work / "three"),
        "few": lambda: _few(data["three"](), given.work / "few"),
        "fashion": lambda: _fashion(given.fashion_mnist, given.work / "fashion"),
    }
    for name in given.only or dict.fromkeys(run[0] for run in RUNS):
        for recipe, where, options, _ in RUNS:
            if recipe == name:
                _run(recipe, data[where](), options, given.work / f"{recipe}-{where}")
    rows = []
    for recipe, where, options, scores in RUNS:
        done = given.work / f"{recipe}-{where}" / "result.json"
        if done.exists():
            found = json.loads(done.read_text())
            published = found["published"]
            command = " ".join(["tlray run", recipe, "IMAGES --out DIR", *options])
            rows.append(
                f"| `{recipe}` | {published} | {scores(found['stages'])} | {found['seconds']:.0f} | "
                f"{DATA[where]} | `{command}` |"
            )
    text = TEMPLATE.format(rows="\n".join(rows), machine=machine(), versions=versions())
    (HERE / "RESULTS.md").write_text(text)
    print(text)


def _run(recipe: str, images: Path, options: list[str], out: Path) -> None:
    done = out / "result.json"
    if done.exists():
        return
    tlray = [sys.executable, "-m", "tlray"]
    started = time.perf_counter()
    command = [*tlray, "run", recipe, str(images), "--out", str(out), "--json", *options]
    print(*command, file=sys.stderr, flush=True)
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    found["seconds"] = time.perf_counter() - started
    shown = subprocess.run([*tlray, "recipes", "show", recipe, "--json"], stdout=subprocess.PIPE, check=True)
    found["published"] = json.loads(shown.stdout)["published"]
    done.write_text(json.dumps(found, indent=1))


def _by_name(stages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: {"out": stage["out"], **(stage["result"] or {})} for stage in stages}


def _validation(stages: list[dict[str, Any]]) -> str:
    stage = _by_name(stages)
    metrics = stage["model"]["metrics"]
    return f"validation accuracy {metrics['val_accuracy']:.3f} after {stage['model']['epochs']} epochs"


def _tested(stages: list[dict[str, Any]]) -> str:
    stage = _by_name(stages)
    report, model = stage["report"], stage.get("model")
    text = f"accuracy {report['accuracy']:.3f}, loss {report['loss']:.3f}"
    return f"{text}, {model['epochs']} epochs" if model else text


def _stopped(stages: list[dict[str, Any]]) -> str:
    model = _by_name(stages)["model"]
    history = json.loads(Path(model["out"], "manifest.json").read_text())["history"]
    best = max(epoch["val_accuracy"] for epoch in history)
    return (
        f"{_tested(stages)}; stopped after epoch {model['stopped_epoch'] + 1} "
        f"({model['stopped_epoch']} counted from zero), best validation accuracy {best:.4f}"
    )


def _stages(stages: list[dict[str, Any]]) -> str:
    trained = {name: stage for name, stage in _by_name(stages).items() if "metrics" in stage}
    parts = [f"{name} {stage['metrics']['val_accuracy']:.3f}" for name, stage in trained.items()]
    return f"validation accuracy: {', '.join(parts)}; at the end {_tested(stages)}"


RUNS: list[tuple[str, str, list[str], Callable[[list[dict[str, Any]]], str]]] = [
    ("vgg16-features-tensorboard", "all", [], _validation),
    ("vgg16-features-tensorboard-plus", "all", [], _validation),
    ("vgg16-features", "all", NO_TEST, _tested),
    ("vgg16-features-plus", "all", NO_TEST, _tested),
    ("vgg16-frozen-224", "all", [*NO_TEST, "--set", "predictions.split=validation"], _tested),
    ("vgg16-frozen-224-plus", "all", [*NO_TEST, "--set", "predictions.split=validation"], _tested),
    ("vgg16-finetune", "part", NO_TEST, _stages),
    ("vgg16-finetune-plus", "part", NO_TEST, _stages),
    ("vgg16-finetune-plus", "all", NO_TEST, _stages),
    ("simple-nn", "three", [], _tested),
    ("simple-nn", "few", [], _tested),
    ("small-vggnet", "few", [], _tested),
    ("mlp-early-stopping", "fashion", [], _stopped),
]
"""Recipe, data, options, and the function that describes the result."""

DATA = {
    "all": "cats and dogs: 1,000 to train, 500 to validate",
    "part": "cats and dogs: 80 to train, 120 to validate, because 130 epochs on all images would take hours",
    "three": "cats, dogs and insects: 1,744 images",
    "few": "cats, dogs and insects: 200 images of each class, to save time",
    "fashion": "Fashion-MNIST: 60,000 and 10,000 grey images",
}


def _part(source: Path, target: Path) -> Path:
    """The first images of every class of every split, as links."""
    for folder in sorted(source.glob("*/*")):
        for path in sorted(folder.iterdir())[: 40 if folder.parent.name == "train" else 60]:
            _link(path, target / path.relative_to(source))
    return target


def _three(cats_dogs: Path, hymenoptera: Path, target: Path) -> Path:
    """Cats, dogs and insects without splits, as links."""
    for name in ("cats", "dogs"):
        for path in cats_dogs.glob(f"*/{name}/*"):
            _link(path, target / name / f"{path.parent.parent.name}-{path.name}")
    for path in hymenoptera.glob("train/*/*"):
        if path.parent.name in ("ants", "bees"):
            _link(path, target / "insects" / path.name)
    return target


def _few(source: Path, target: Path) -> Path:
    """The first 200 images of every class, as links."""
    for folder in sorted(source.iterdir()):
        for path in sorted(folder.iterdir())[:200]:
            _link(path, target / path.relative_to(source))
    return target


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(path.resolve())


def _fashion(source: Path, target: Path) -> Path:
    """The images of Debian's package `dataset-fashion-mnist` as PNG files."""
    for name, split in (("train", "train"), ("t10k", "test")):
        pixels = np.frombuffer(_read(source / f"{name}-images-idx3-ubyte"), np.uint8, offset=16)
        labels = np.frombuffer(_read(source / f"{name}-labels-idx1-ubyte"), np.uint8, offset=8)
        for number, (picture, label) in enumerate(zip(pixels.reshape(-1, 28, 28), labels, strict=True)):
            path = target / split / str(label) / f"{number:05d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return target


def _read(path: Path) -> bytes:
    zipped = path.with_name(f"{path.name}.gz")
    return gzip.decompress(zipped.read_bytes()) if zipped.exists() else path.read_bytes()


TEMPLATE = """# Results of the recipes

Each row is one command, run by `make results`. Seconds count from the start of the command to its end, with
the start of Ray, on a machine that other programs used too. The published figures come from other, mostly
larger sets of photographs. The photographs here have no test split, so all scores of cats and dogs are those
of the validation images. The recipes with early stopping also use these images to decide when to stop.

| recipe | published | measured here | seconds | data | command |
|---|---|---|---|---|---|
{rows}

{machine}. {versions}.
"""

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
