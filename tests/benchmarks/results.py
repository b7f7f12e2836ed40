"""`make results`: runs every recipe on real photographs, and writes the table of RESULTS.md.

The data are not part of the project, so the options name their folders. The work folder keeps every run;
a run that is there already is not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.benchmarks import photographs
from tests.benchmarks.bench import rewrite, table

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
    for name in given.only or dict.fromkeys(run[0] for run in RUNS):
        for recipe, where, options, _ in RUNS:
            if recipe == name:
                _run(recipe, _images(where, given), options, given.work / f"{recipe}-{where}")
    rows = []
    for recipe, where, options, scores in RUNS:
        done = given.work / f"{recipe}-{where}" / "result.json"
        if done.exists():
            result = json.loads(done.read_text())
            command = " ".join(["tlray run", recipe, "IMAGES --out DIR", *options])
            measured = f"{scores(result['stages'])} | {result['seconds']:.0f}"
            rows.append(f"`{recipe}` | {result['published']} | {measured} | {DATA[where]} | `{command}`")
    head = "recipe | published | measured here | seconds | data | command"
    rewrite(HERE / "RESULTS.md", {"Results of the recipes": table(head, rows)})


def _run(recipe: str, images: Path, options: list[str], out: Path) -> None:
    done = out / "result.json"
    if done.exists():
        return
    tlray = [sys.executable, "-m", "tlray"]
    started = time.perf_counter()
    command = [*tlray, "run", recipe, str(images), "--out", str(out), "--json", *options]
    print(*command, file=sys.stderr, flush=True)
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    result["seconds"] = time.perf_counter() - started
    shown = subprocess.run([*tlray, "recipes", "show", recipe, "--json"], stdout=subprocess.PIPE, check=True)
    result["published"] = json.loads(shown.stdout)["published"]
    done.write_text(json.dumps(result, indent=1))


def _by_name(stages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: {"out": stage["out"], **(stage["result"] or {})} for stage in stages}


def _validation(stages: list[dict[str, Any]]) -> str:
    model = _by_name(stages)["model"]
    return f"validation accuracy {model['metrics']['val_accuracy']:.3f} after {model['epochs']} epochs"


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


def _images(name: str, given: argparse.Namespace) -> Path:
    """The folder of the images that DATA describes; it is made if it is not there."""
    target = given.work / name
    match name:
        case "all":
            return given.cats_dogs
        case "part":
            _link_first(40, given.cats_dogs, "train/*", target)
            _link_first(60, given.cats_dogs, "validation/*", target)
        case "three":
            for path in given.cats_dogs.glob("*/*/*"):
                _link(path, target / path.parent.name / f"{path.parent.parent.name}-{path.name}")
            for path in given.hymenoptera.glob("train/*/*"):
                _link(path, target / "insects" / path.name)
        case "few":
            _link_first(200, _images("three", given), "*", target)
        case "fashion":
            _write_fashion(given.fashion_mnist, target)
    return target


def _link_first(count: int, source: Path, classes: str, target: Path) -> None:
    """Link the first images of each class."""
    for folder in source.glob(classes):
        for path in sorted(folder.iterdir())[:count]:
            _link(path, target / path.relative_to(source))


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(path.resolve())


def _write_fashion(source: Path, target: Path) -> None:
    """Write the images of Fashion-MNIST as PNG files."""
    for name, split in (("train", "train"), ("t10k", "test")):
        for number, (pixels, label) in enumerate(photographs.fashion_mnist(source, name)):
            path = target / split / str(label) / f"{number:05d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
