"""What an evaluation found, as JSON, plots and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tlray.core.manifest import dump, plain
from tlray.core.storage import Folder
from tlray.evaluation import plots
from tlray.evaluation.plots import COUNTED, NAMED

TILES = 48
"""The page shows this many mistakes at most, so that it stays small enough to be sent by mail."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image whose most probable class is not its label."""

    path: str
    label: str
    predicted: str
    probability: float
    """What the model gave its wrong answer, from 0 to 1."""
    thumbnail: bytes | None = None
    """A JPEG of at most 160 pixels a side; None where the image could not be had."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class is told from the others."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """The number of images that truly are of this class."""

    @property
    def meaningful(self) -> tuple[float, float, float]:
        """Precision, recall and F1; a class without images has neither recall nor F1."""
        return (
            (self.precision, self.recall, self.f1) if self.support else (self.precision, math.nan, math.nan)
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was measured of one model on one set of images."""

    model: str
    data: str
    split: str | None
    images: int
    rows: int
    errors: int
    unlabelled: int
    loss: float
    accuracy: float
    classes: tuple[str, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    """Rows are the true classes, columns the predicted ones, both in the order of `classes`."""
    scores: tuple[ClassScore, ...]
    mistakes: tuple[Mistake, ...]
    """The most confidently wrong first."""
    provenance: Mapping[str, Any]
    seconds: float
    stages: tuple[Mapping[str, Any], ...] = ()
    """How the model was trained, oldest stage first: the entries of "stages" in the model's manifest."""

    @property
    def evaluated(self) -> int:
        """The number of images behind the accuracy: those with a label and a prediction."""
        return sum(map(sum, self.confusion_matrix))

    @property
    def correct(self) -> int:
        """The number of images whose most probable class is their label."""
        return sum(row[index] for index, row in enumerate(self.confusion_matrix))

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson score interval of the accuracy; None if nothing was evaluated."""
        if not (count := self.evaluated):
            return None
        share, z2 = self.correct / count, 1.959964**2
        centre = share + z2 / (2 * count)
        spread = math.sqrt(z2 * share * (1 - share) / count + (z2 / (2 * count)) ** 2)
        low, high = ((centre + side) / (1 + z2 / count) for side in (-spread, spread))
        return max(low, 0.0), min(high, 1.0)

    def confusions(self, most: int = 10) -> list[tuple[int, int, str, str]]:
        """The most frequent confusions: how many, of how many, true class, predicted class."""
        cells = (
            (count, sum(row), self.classes[true], self.classes[predicted])
            for true, row in enumerate(self.confusion_matrix)
            for predicted, count in enumerate(row)
            if count and true != predicted
        )
        return sorted(cells, key=lambda cell: (-cell[0], cell[1]))[:most]

    def weakest(self, most: int = 10) -> list[ClassScore]:
        """The classes with the lowest F1 among those that have images."""
        present = (score for score in self.scores if score.support)
        return sorted(present, key=lambda score: (math.isfinite(score.f1), score.f1))[:most]

    def to_json(self) -> dict[str, Any]:
        """All of it in JSON's own types, without the thumbnails; null for what is not a finite number."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["scores"] = [vars(score) for score in self.scores]
        told = ("path", "label", "predicted", "probability")
        content["mistakes"] = [{name: getattr(mistake, name) for name in told} for mistake in self.mistakes]
        content |= {"evaluated": self.evaluated, "accuracy_interval": self.accuracy_interval}
        return {name: plain(value) for name, value in content.items()}


def summary(evaluation: Evaluation) -> str:
    """The evaluation as plain text for a terminal, at most 100 columns wide."""
    found, interval = evaluation, evaluation.accuracy_interval
    counts = {"found": found.images, "evaluated": found.evaluated}
    others = {"unreadable": found.errors, "without a label": found.unlabelled}
    counts |= {what: count for what, count in others.items() if count}
    between = f"  (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    facts = [
        ("model", found.model),
        ("data", f"{found.data} ({found.split})" if found.split else found.data),
        ("images", ", ".join(f"{count:,} {what}" for what, count in counts.items())),
        ("accuracy", _number(found.accuracy, 4) + between),
        ("loss", _number(found.loss, 4)),
    ]
    every = len(found.scores) <= NAMED
    scores = found.scores if every else found.weakest(COUNTED)
    head = "class" if every else f"the {len(scores)} weakest of {len(found.scores):,} classes"
    table = [(head, "precision", "recall", "f1", "support")]
    for score in scores:
        precision, recall, f1 = (_number(value, 3) for value in score.meaningful)
        table.append((score.label, precision, recall, f1, f"{score.support:,}"))
    blocks = [_columns(facts, "ll"), _columns(table, "lrrrr")]
    if len(found.stages) > 1:
        blocks.insert(1, f"trained in {len(found.stages)} stages\n{_stages(found.stages)}")
    if matrix := _matrix(found):
        blocks.append(f"confusion matrix (rows: true, columns: predicted)\n{matrix}")
    elif pairs := [(f" {count:,} of {of:,}", f"{a} -> {b}") for count, of, a, b in found.confusions()]:
        blocks.append(f"most frequent confusions (true -> predicted)\n{_columns(pairs, 'rl')}")
    worst = [
        (f" {_percent(m.probability)}", f"{m.label} -> {m.predicted}", m.path) for m in found.mistakes[:5]
    ]
    if worst:
        blocks.append(f"most confidently wrong (true -> predicted)\n{_columns(worst, 'rll')}")
    return "\n\n".join(blocks)


def write_report(evaluation: Evaluation, folder: Folder) -> list[str]:
    """Write report.json, the plots and index.html into a folder.

    Returns:
        The names of the files. The last stage's curves are curves.png and, if it is long enough to be
        smoothed, curves_smoothed.png; those of an earlier stage N are curves_N.png, curves_N_smoothed.png.
    """
    # A line for each entry: a matrix of 200 classes would be 40,000 lines of indented JSON.
    entries = (f'"{name}": {dump(value)}' for name, value in evaluation.to_json().items())
    plots.prepare_matplotlib()
    classes = [_shown(name) for name in evaluation.classes]
    confusion = plots.confusion(classes, evaluation.confusion_matrix)
    curves = [_curves(stage) for stage in evaluation.stages]
    texts = {
        "report.json": "{\n" + ",\n".join(entries) + "\n}\n",
        "index.html": _page(evaluation, confusion, curves),
    }
    # A file name that is no UTF-8 comes as half surrogate pairs, which only escaped can be written.
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    files["confusion_matrix.png"] = confusion
    for number, pictures in enumerate(curves, 1):
        stage = "" if number == len(curves) else f"_{number}"
        files |= {f"curves{stage}{kind}.png": picture for kind, picture in pictures.items()}
    for name in folder.names():
        if name not in files and re.fullmatch(r"curves(_[0-9]+)?(_smoothed)?\.png", name):
            folder.remove(name)  # of an earlier report
    for name, data in files.items():
        folder.write(name, data)
    return sorted(files)


def _curves(stage: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of a stage, by what stands in their file names."""
    history = stage["history"]
    if len(history) < plots.SMOOTHED:
        return {"": plots.curves(history)} if history else {}
    return {"": plots.curves(history), "_smoothed": plots.curves(history, smooth=True)}


def _trained(stage: Mapping[str, Any]) -> str:
    """Which part of the network a stage trained."""
    if stage["from"] == "input":
        return "everything"
    return "head only" if stage["from"] is None else f"from {stage['from']} on"


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    """A line for each stage."""
    rows = []
    for number, stage in enumerate(stages, 1):
        what = f"{_trained(stage)} ({stage['head']}){', augmented' if stage['augment'] else ''}"
        stopped = "" if stage["stopped_epoch"] is None else ", stopped early"
        accuracy = _number(stage["metrics"].get("val_accuracy"), 4)
        epochs = f"{stage['epochs']:,} epoch{'' if stage['epochs'] == 1 else 's'}"
        rows.append((f" {number}", what, epochs + stopped, accuracy))
    head = (" ", "trained", "epochs", "validation accuracy")
    return _columns([head, *rows], "rllr")


def _shown(text: str) -> str:
    """The text with everything escaped that would move the cursor or reorder what stands beside it."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"
        else char
        for char in str(text)
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _percent(share: float | None, digits: int = 1) -> str:
    """A percentage that says 100 only of the whole."""
    if share is None or not math.isfinite(share):
        return "-"
    return f"{min(100 * share, 100 - 10**-digits) if share < 1 else 100:.{digits}f} %"


def _columns(rows: Iterable[Sequence[str]], sides: str, gap: int = 2) -> str:
    """A table in 100 columns; where it is wider, the text in its left-aligned columns is folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, gap, 0, 0))
    for side in sides:
        table.add_column(justify="left" if side == "l" else "right", no_wrap=side == "r", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(cell)) for cell in row))
    out = io.StringIO()
    Console(file=out, width=100, color_system=None, force_terminal=False, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _matrix(found: Evaluation) -> str:
    """The confusion matrix; nothing where it is too wide for a terminal."""
    from rich.cells import cell_len

    heads = names = [_shown(name) for name in found.classes]
    body = [[f"{count:,}" for count in row] for row in found.confusion_matrix]
    digits, count = max(len(cell) for row in body for cell in row), len(names)
    if count > COUNTED or (digits + 1) * count > 84:
        return ""
    if sum(max(digits, cell_len(name)) + 2 for name in names) > 70:
        heads = [str(number) for number in range(1, count + 1)]
        names = [f"{number:>2} {name}" for number, name in enumerate(names, 1)]
    rows = [["", *heads], *([name, *cells] for name, cells in zip(names, body, strict=True))]
    return _columns(rows, "l" + "r" * count, gap=2 if (digits + 2) * count <= 70 else 1)


def _page(found: Evaluation, confusion: bytes, curves: Sequence[Mapping[str, bytes]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from tlray import __version__

    environment = Environment(
        loader=PackageLoader("tlray.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "shown": _shown,
        "number": _number,
        "trained": _trained,
        "percent": lambda *share: _percent(*share).replace(" ", "\N{NO-BREAK SPACE}"),
        "text": lambda value: _shown(value if isinstance(value, str) else dump(value)),
        "base64": lambda data: base64.b64encode(data).decode(),
        # Plots are drawn at twice the size they are shown at, for the sharpness of modern screens.
        "shown_width": lambda png: int.from_bytes(png[16:20], "big") // 2,
    }
    totals = map(sum, found.confusion_matrix)
    return environment.get_template("report.html").render(
        found=found,
        confusion=confusion,
        curves=curves,
        numbers={name: number for number, name in enumerate(found.classes, 1)},
        usual=max(zip(totals, found.classes, strict=True), key=lambda pair: pair[0]),
        digits=1 if found.evaluated <= 1000 else 2,
        provenance=plain(found.provenance),
        factor=plots.FACTOR,
        many=len(found.classes) > COUNTED,
        tiles=TILES,
        version=__version__,
    )
