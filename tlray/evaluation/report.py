"""Writes an evaluation as JSON, plots and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tlray.core.errors import UserError
from tlray.core.record import dump, plain
from tlray.core.storage import Folder, is_temporary
from tlray.core.text import escaped
from tlray.evaluation import plots
from tlray.evaluation.scores import MAX_TILES, Evaluation
from tlray.evaluation.summary import decimals, percent, trained_part

_FILES = ("report.json", "index.html", "confusion_matrix.png")
_KINDS = {"": 1, "_smoothed": plots.MIN_SMOOTHED_EPOCHS}
"""The kinds of curves, each with the number of epochs from which it is drawn."""


def check_folder(folder: Folder) -> None:
    """Raise UserError if a folder holds files, but neither a report nor the work of an evaluation."""
    others = [name for name in folder.names() if not (is_temporary(name) or name.startswith(".parts-"))]
    if others and not _files_in(folder):
        raise UserError(f"{folder.uri} is not empty and has no report by tlray: choose another --out")


def write_report(evaluation: Evaluation, folder: Folder) -> list[str]:
    """Write report.json, the plots and index.html into a folder, and return the names of the files.

    The curves of the last stage are in curves.png and, if there are enough epochs, in curves_smoothed.png;
    those of an earlier stage N are in curves_N.png and curves_N_smoothed.png. Those of an earlier report are
    removed.
    """
    # Write one line for each entry, because indented JSON of a matrix of 200 classes has 40,000 lines.
    entries = (f'"{name}": {dump(value)}' for name, value in evaluation.to_json().items())
    plots.prepare_matplotlib()
    classes = [escaped(name) for name in evaluation.classes]
    confusion = plots.confusion(classes, evaluation.confusion_matrix)
    names = _names(evaluation.stages)
    drawn = {name: plots.curves(stage["history"], smooth=kind != "") for name, (stage, kind) in names.items()}
    curves = [
        {kind: drawn[name] for name, (of, kind) in names.items() if of is stage}
        for stage in evaluation.stages
    ]
    texts = {
        "report.json": "{\n" + ",\n".join(entries) + "\n}\n",
        "index.html": _page(evaluation, confusion, curves),
    }
    # A file name that is not UTF-8 holds halves of surrogate pairs, which can only be written escaped.
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    files |= {"confusion_matrix.png": confusion, **drawn}
    for name in _files_in(folder) - files.keys():
        folder.remove(name)
    for name, data in files.items():  # The first is report.json, which shows that the others are tlray's.
        folder.write(name, data)
    return sorted(files)


def _names(stages: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Mapping[str, Any], str]]:
    """The stage and the kind of the curves, by the name of their file."""
    return {
        f"curves{'' if number == len(stages) else f'_{number}'}{kind}.png": (stage, kind)
        for number, stage in enumerate(stages, 1)
        for kind, epochs in _KINDS.items()
        if len(stage["history"]) >= epochs
    }


def _files_in(folder: Folder) -> set[str]:
    """The names of the files of the report in a folder; empty if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(folder.read("report.json"))
        if "confusion_matrix" in values:
            return {*_FILES, *_names(values["stages"])}
    return set()


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
