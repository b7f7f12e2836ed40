"""The plots of an evaluation, as PNG: curves by epoch, and the confusion matrix."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

MAX_COUNTED_CLASSES = 20
"""The most classes whose confusion matrix has numbers; with more, the largest confusions are listed."""
MAX_NAMED_CLASSES = 40
"""The most classes that are named beside the confusion matrix; more are numbered."""
MIN_SMOOTHED_EPOCHS = 10
"""The fewest epochs whose curves are also shown smoothed; with fewer, noise hides no trend."""
SMOOTHING = 0.8
"""The share of the previous average in the next smoothed value, as in the published plots."""


def prepare_matplotlib() -> None:
    """Import matplotlib without a cache in the home folder."""
    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        is_ours = os.environ.setdefault("MPLCONFIGDIR", folder) == folder
        import matplotlib.font_manager  # noqa: F401

        if is_ours:
            del os.environ["MPLCONFIGDIR"]


def _png(figure: Any) -> bytes:
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average with `SMOOTHING`; a missing value stays missing."""
    averages: list[float] = []
    last = math.nan
    for value in values:
        if math.isfinite(value):
            last = last * SMOOTHING + value * (1 - SMOOTHING) if math.isfinite(last) else value
        averages.append(last if math.isfinite(value) else math.nan)
    return averages


def curves(history: Sequence[Mapping[str, Any]], *, smooth: bool = False) -> bytes:
    """Plot accuracy and loss by epoch as published: training as points, validation as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    figure = Figure(figsize=(11.5, 4.2), dpi=160, layout="constrained")
    epochs = [row["epoch"] for row in history]
    line = "-" if len(epochs) > 1 else "D"  # A line of a single epoch would be invisible.
    # Each of the two plots is about 370 points wide, so larger dots of many epochs would overlap.
    size, width = max(min(5.5, 260 / len(epochs)), 1.5), max(min(2.2, 140 / len(epochs)), 1.0)
    look = {"markersize": size, "markeredgewidth": 0, "linewidth": width, "clip_on": False}
    margin = min(0.9, 0.2 + 0.03 * len(epochs))
    both = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    for axes, name in zip(both, ("accuracy", "loss"), strict=True):
        kinds = ((name, "training", "o", "#c8600a"), (f"val_{name}", "validation", line, "#1d5fbf"))
        for key, label, style, color in kinds:
            if any(key in row for row in history):
                # The manifest has null for a number that was not finite.
                values = [math.nan if (value := row.get(key)) is None else value for row in history]
                values = smoothed(values) if smooth else values
                order = 3 if key == name else 2  # The points are in front of the line.
                axes.plot(epochs, values, style, color=color, label=label, zorder=order, **look)
        axes.set(xlabel="epoch", xlim=(min(epochs) - margin, max(epochs) + margin))
        axes.set_title(f"{name}, smoothed" if smooth else name, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#8492a4")
        axes.tick_params(length=0)
        axes.legend(facecolor="white", edgecolor="none", framealpha=0.85)
    # A page may have many of these plots, and with a palette each takes a quarter of the bytes.
    picture = Image.open(io.BytesIO(_png(figure))).convert("RGB")
    picture = picture.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(buffer := io.BytesIO(), format="PNG", optimize=True)
    return buffer.getvalue()


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Plot the confusion matrix of 2 to 1,000 classes, shaded by the share of each true class."""
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.ticker import MaxNLocator

    matrix = np.asarray(counts, dtype=int)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count, counted = len(matrix), len(matrix) <= MAX_COUNTED_CLASSES
    names = [f"{name[:11]}…{name[-10:]}" if len(name) > 22 else name for name in classes]
    longest = max(map(len, names))
    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()  # The font is part of matplotlib.
    named = count <= MAX_NAMED_CLASSES and all(ord(char) in glyphs for name in names for char in name)
    side, margin = 1.9 + 0.36 * count if counted else 8.2, 0.085 * longest + 0.5 if named else 0.7
    size = (side + margin + (0 if counted else 1.2), side + margin)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    axes = figure.subplots()
    # Without numbers, the shading itself must show a confusion of one in a hundred.
    norm = PowerNorm(1 if counted else 0.5, vmin=0, vmax=1)
    extent = (0.5, count + 0.5, count + 0.5, 0.5)
    image = axes.imshow(shares, cmap="Blues", norm=norm, extent=extent, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10 if counted else 8)
    if named:
        # The name of a class, e.g. "$x$", is not a formula.
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
