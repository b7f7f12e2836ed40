"""The pictures of an evaluation: curves by epoch and the confusion matrix, as PNG."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

COUNTED = 20
"""Up to this many classes a confusion matrix is shown with its counts; above, its largest confusions."""
NAMED = 40
"""Up to this many classes are named along the picture of the matrix; above, they are numbered."""
SMOOTHED = 10
"""From this many epochs on the curves are also shown smoothed; fewer show no trend that noise could hide."""
FACTOR = 0.8
"""Of the published plots: the share of the average so far in the next smoothed value."""


def prepare_matplotlib() -> None:
    """Import matplotlib without the cache it would leave in the home folder."""
    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        ours = os.environ.setdefault("MPLCONFIGDIR", folder) == folder
        import matplotlib.font_manager  # noqa: F401

        if ours:
            del os.environ["MPLCONFIGDIR"]


def _png(figure: Any) -> bytes:
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average with the published factor; a missing value stays missing."""
    result: list[float] = []
    last = math.nan
    for value in values:
        if math.isfinite(value):
            last = last * FACTOR + value * (1 - FACTOR) if math.isfinite(last) else value
        result.append(last if math.isfinite(value) else math.nan)
    return result


def curves(history: Sequence[Mapping[str, Any]], *, smooth: bool = False) -> bytes:
    """Accuracy and loss by epoch, in the published form: training as points, validation as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    figure = Figure(figsize=(11.5, 4.2), dpi=160, layout="constrained")
    epochs = [row["epoch"] for row in history]
    line = "-" if len(epochs) > 1 else "D"  # a line needs two ends
    # Each of the two plots is some 370 points wide: among many epochs, larger dots would run together.
    size, width = max(min(5.5, 260 / len(epochs)), 1.5), max(min(2.2, 140 / len(epochs)), 1.0)
    look = {"markersize": size, "markeredgewidth": 0, "linewidth": width}
    margin = min(0.9, 0.2 + 0.03 * len(epochs))
    both = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    for axes, name in zip(both, ("accuracy", "loss"), strict=True):
        kinds = ((name, "training", "o", "#c8600a"), (f"val_{name}", "validation", line, "#1d5fbf"))
        for key, label, style, color in kinds:
            if any(key in row for row in history):
                # A number that was not finite is null in the manifest.
                values = [math.nan if (value := row.get(key)) is None else value for row in history]
                shown = smoothed(values) if smooth else values
                order = 3 if key == name else 2  # no point is hidden by the line
                axes.plot(epochs, shown, style, color=color, label=label, zorder=order, clip_on=False, **look)
        axes.set(xlabel="epoch", xlim=(min(epochs) - margin, max(epochs) + margin))
        axes.set_title(f"{name}, smoothed" if smooth else name, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#8492a4")
        axes.tick_params(length=0)
        axes.legend(facecolor="white", edgecolor="none", framealpha=0.85)
    # A page may hold many of these: with a palette each takes a quarter of the bytes.
    picture = Image.open(io.BytesIO(_png(figure))).convert("RGB")
    picture = picture.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(buffer := io.BytesIO(), format="PNG", optimize=True)
    return buffer.getvalue()


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """The confusion matrix, shaded by the share of each true class, legible from 2 to 1,000 classes."""
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.ticker import MaxNLocator

    matrix = np.asarray(counts, dtype=int)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count, counted = len(matrix), len(matrix) <= COUNTED
    names = [f"{name[:11]}…{name[-10:]}" if len(name) > 22 else name for name in classes]
    longest = max(map(len, names))
    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()  # the font that comes with matplotlib
    named = count <= NAMED and all(ord(char) in glyphs for name in names for char in name)
    side, margin = 1.9 + 0.36 * count if counted else 8.2, 0.085 * longest + 0.5 if named else 0.7
    size = (side + margin + (0 if counted else 1.2), side + margin)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    axes = figure.subplots()
    # Without counts to read, the shading itself has to show a confusion of one in a hundred.
    norm = PowerNorm(1 if counted else 0.5, vmin=0, vmax=1)
    extent = (0.5, count + 0.5, count + 0.5, 0.5)
    image = axes.imshow(shares, cmap="Blues", norm=norm, extent=extent, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10 if counted else 8)
    if named:
        # A class may be called "$x$"; that is no formula.
        text: dict[str, Any] = {"fontfamily": "DejaVu Sans", "parse_math": False}
        axes.set_yticks(range(1, count + 1), names, **text)
        if longest * 0.09 > side / count:
            text |= {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(1, count + 1), names, **text)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
            axis.set_label_text(f"{axis.get_label_text()}, by number")
    if not counted:
        bar = figure.colorbar(image, shrink=0.6, aspect=30, label="share of the true class")
        bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1], labels=["0", "1 %", "10 %", "25 %", "50 %", "100 %"])
        bar.outline.set_visible(False)
        return _png(figure)
    fontsize = min(13, 72 * side / count / (0.75 * len(f"{matrix.max():,}") + 0.6))
    for (row, column), number in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.55 else "#1c2733" if number else "#8492a4"
        text = {"color": color, "fontsize": fontsize, "ha": "center", "va": "center_baseline"}
        axes.text(column + 1, row + 1, f"{number:,}", **text)
    return _png(figure)
