"""Writes an evaluation as JSON, plots and one self-contained HTML page."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tlray.core.record import dump, plain
from tlray.core.storage import Folder
from tlray.evaluation import plots
from tlray.evaluation.scores import MAX_TILES, Evaluation
from tlray.evaluation.summary import decimals, escaped, percent, trained_part


def write_report(evaluation: Evaluation, folder: Folder) -> list[str]:
    """Write report.json, the plots and index.html into a folder, and return the names of the files.

    The curves of the last stage are in curves.png and, if there are enough epochs, in curves_smoothed.png;
    those of an earlier stage N are in curves_N.png and curves_N_smoothed.png.
    """
    # Write one line for each entry, because indented JSON of a matrix of 200 classes has 40,000 lines.
    entries = (f'"{name}": {dump(value)}' for name, value in evaluation.to_json().items())
    plots.prepare_matplotlib()
    classes = [escaped(name) for name in evaluation.classes]
    confusion = plots.confusion(classes, evaluation.confusion_matrix)
    curves = [_curves(stage) for stage in evaluation.stages]
    texts = {
        "report.json": "{\n" + ",\n".join(entries) + "\n}\n",
        "index.html": _page(evaluation, confusion, curves),
    }
    # A file name that is not UTF-8 holds halves of surrogate pairs, which can only be written escaped.
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    files["confusion_matrix.png"] = confusion
    for number, pictures in enumerate(curves, 1):
        stage = "" if number == len(curves) else f"_{number}"
        files |= {f"curves{stage}{kind}.png": picture for kind, picture in pictures.items()}
    for name in folder.names():
        if name not in files and re.fullmatch(r"curves(_[0-9]+)?(_smoothed)?\.png", name):
            folder.remove(name)  # It is from an earlier report.
    for name, data in files.items():
        folder.write(name, data)
    return sorted(files)


def _curves(stage: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the plots of a stage, by the last part of their file names."""
    history = stage["history"]
    if len(history) < plots.MIN_SMOOTHED_EPOCHS:
        return {"": plots.curves(history)} if history else {}
    return {"": plots.curves(history), "_smoothed": plots.curves(history, smooth=True)}


def _page(evaluation: Evaluation, confusion: bytes, curves: Sequence[Mapping[str, bytes]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from tlray import __version__

    environment = Environment(
        loader=PackageLoader("tlray.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "escaped": escaped,
        "number": decimals,
        "trained": trained_part,
        "percent": lambda *share: percent(*share).replace(" ", "\N{NO-BREAK SPACE}"),
        "text": lambda value: escaped(value if isinstance(value, str) else dump(value)),
        "base64": lambda data: base64.b64encode(data).decode(),
        # Plots are drawn at twice the size they are shown at, so that they are sharp on modern screens.
        "shown_width": lambda png: int.from_bytes(png[16:20], "big") // 2,
    }
    totals = map(sum, evaluation.confusion_matrix)
    return environment.get_template("report.html").render(
        evaluation=evaluation,
        confusion=confusion,
        curves=curves,
        numbers={name: number for number, name in enumerate(evaluation.classes, 1)},
        most_frequent=max(zip(totals, evaluation.classes, strict=True), key=lambda pair: pair[0]),
        digits=1 if evaluation.evaluated <= 1000 else 2,
        provenance=plain(evaluation.provenance),
        factor=plots.SMOOTHING,
        many=len(evaluation.classes) > plots.MAX_COUNTED_CLASSES,
        tiles=MAX_TILES,
        version=__version__,
    )
