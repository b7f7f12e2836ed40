"""An evaluation as text for a terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tlray.core.text import escaped
from tlray.evaluation.plots import MAX_COUNTED_CLASSES, MAX_NAMED_CLASSES
from tlray.evaluation.scores import Evaluation


def summary(evaluation: Evaluation) -> str:
    """Return the evaluation as plain text for a terminal, at most 100 columns wide."""
    counts = {"found": evaluation.images, "evaluated": evaluation.evaluated}
    others = {"unreadable": evaluation.errors, "without a label": evaluation.unlabelled}
    counts |= {kind: count for kind, count in others.items() if count}
    interval = evaluation.accuracy_interval
    range_text = f"  (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    facts = [
        ("model", evaluation.model),
        ("data", f"{evaluation.data} ({evaluation.split})" if evaluation.split else evaluation.data),
        ("images", ", ".join(f"{count:,} {kind}" for kind, count in counts.items())),
        ("accuracy", decimals(evaluation.accuracy, 4) + range_text),
        ("loss", decimals(evaluation.loss, 4)),
    ]
    shows_all = len(evaluation.scores) <= MAX_NAMED_CLASSES
    scores = evaluation.scores if shows_all else evaluation.weakest(MAX_COUNTED_CLASSES)
    head = "class" if shows_all else f"the {len(scores)} weakest of {len(evaluation.scores):,} classes"
    table = [(head, "precision", "recall", "f1", "support")]
    for score in scores:
        precision, recall, f1 = (decimals(value, 3) for value in score.meaningful)
        table.append((score.label, precision, recall, f1, f"{score.support:,}"))
    blocks = [_columns(facts, "ll"), _columns(table, "lrrrr")]
    if len(evaluation.stages) > 1:
        blocks.insert(1, f"trained in {len(evaluation.stages)} stages\n{_stages(evaluation.stages)}")
    if matrix := _matrix(evaluation):
        blocks.append(f"confusion matrix (rows: true, columns: predicted)\n{matrix}")
    elif pairs := [(f" {n:,} of {of:,}", f"{a} -> {b}") for n, of, a, b in evaluation.confusions()]:
        blocks.append(f"most frequent confusions (true -> predicted)\n{_columns(pairs, 'rl')}")
    if worst := [
        (f" {percent(mistake.probability)}", f"{mistake.label} -> {mistake.predicted}", mistake.path)
        for mistake in evaluation.mistakes[:5]
    ]:
        blocks.append(f"most confidently wrong (true -> predicted)\n{_columns(worst, 'rll')}")
    return "\n\n".join(blocks)


def trained_part(stage: Mapping[str, Any]) -> str:
    """Return the part of the network that a stage trained."""
    if stage["from"] == "input":
        return "everything"
    return "head only" if stage["from"] is None else f"from {stage['from']} on"


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for number, stage in enumerate(stages, 1):
        part = f"{trained_part(stage)} ({stage['head']}){', augmented' if stage['augment'] else ''}"
        stopped = "" if stage["stopped_epoch"] is None else ", stopped early"
        accuracy = decimals(stage["metrics"].get("val_accuracy"), 4)
        epochs = f"{stage['epochs']:,} epoch{'' if stage['epochs'] == 1 else 's'}"
        rows.append((f" {number}", part, epochs + stopped, accuracy))
    head = (" ", "trained", "epochs", "validation accuracy")
    return _columns([head, *rows], "rllr")


def decimals(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage, which is rounded to 100 only if it is the whole."""
    if share is None or not math.isfinite(share):
        return "-"
    return f"{min(100 * share, 100 - 10**-digits) if share < 1 else 100:.{digits}f} %"


def _columns(rows: Iterable[Sequence[str]], sides: str, gap: int = 2) -> str:
    """Return a table of at most 100 columns, whose left-aligned columns are folded if it would be wider."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, gap, 0, 0))
    for side in sides:
        table.add_column(justify="left" if side == "l" else "right", no_wrap=side == "r", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    out = io.StringIO()
    Console(file=out, width=100, color_system=None, force_terminal=False, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _matrix(evaluation: Evaluation) -> str:
    """Return the confusion matrix, or no text if it is too wide for a terminal."""
    from rich.cells import cell_len

    heads = names = [escaped(name) for name in evaluation.classes]
    body = [[f"{count:,}" for count in row] for row in evaluation.confusion_matrix]
    digits, count = max(len(cell) for row in body for cell in row), len(names)
    if count > MAX_COUNTED_CLASSES or (digits + 1) * count > 84:
        return ""
    if sum(max(digits, cell_len(name)) + 2 for name in names) > 70:
        heads = [str(number) for number in range(1, count + 1)]
        names = [f"{number:>2} {name}" for number, name in enumerate(names, 1)]
    rows = [["", *heads], *([name, *cells] for name, cells in zip(names, body, strict=True))]
    return _columns(rows, "l" + "r" * count, gap=2 if (digits + 2) * count <= 70 else 1)
