"""What an evaluation found, as JSON, plots and one self-contained HTML page."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tlray.core.record import dump, plain
from tlray.core.storage import Folder
from tlray.evaluation import plots
from tlray.evaluation.plots import COUNTED
from tlray.evaluation.scores import TILES, Evaluation
from tlray.evaluation.summary import decimals, percent, shown, trained_part


def write_report(evaluation: Evaluation, folder: Folder) -> list[str]:
    """Write report.json, the plots and index.html into a folder.

    Returns:
        The names of the files. The last stage's curves are curves.png and, if it is long enough to be
        smoothed, curves_smoothed.png; those of an earlier stage N are curves_N.png, curves_N_smoothed.png.
    """
    # A line for each entry: a matrix of 200 classes would be 40,000 lines of indented JSON.
    entries = (f'"{name}": {dump(value)}' for name, value in evaluation.to_json().items())
    plots.prepare_matplotlib()
    classes = [shown(name) for name in evaluation.classes]
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


def _page(found: Evaluation, confusion: bytes, curves: Sequence[Mapping[str, bytes]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from tlray import __version__

    environment = Environment(
        loader=PackageLoader("tlray.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "shown": shown,
        "number": decimals,
        "trained": trained_part,
        "percent": lambda *share: percent(*share).replace(" ", "\N{NO-BREAK SPACE}"),
        "text": lambda value: shown(value if isinstance(value, str) else dump(value)),
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
