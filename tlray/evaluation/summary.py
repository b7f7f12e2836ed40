"""An evaluation as text for a terminal."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tlray.evaluation.plots import COUNTED, NAMED
from tlray.evaluation.scores import Evaluation


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
        ("accuracy", decimals(found.accuracy, 4) + between),
        ("loss", decimals(found.loss, 4)),
    ]
    every = len(found.scores) <= NAMED
    scores = found.scores if every else found.weakest(COUNTED)
    head = "class" if every else f"the {len(scores)} weakest of {len(found.scores):,} classes"
    table = [(head, "precision", "recall", "f1", "support")]
    for score in scores:
        precision, recall, f1 = (decimals(value, 3) for value in score.meaningful)
        table.append((score.label, precision, recall, f1, f"{score.support:,}"))
    blocks = [_columns(facts, "ll"), _columns(table, "lrrrr")]
    if len(found.stages) > 1:
        blocks.insert(1, f"trained in {len(found.stages)} stages\n{_stages(found.stages)}")
    if matrix := _matrix(found):
        blocks.append(f"confusion matrix (rows: true, columns: predicted)\n{matrix}")
    elif pairs := [(f" {count:,} of {of:,}", f"{a} -> {b}") for count, of, a, b in found.confusions()]:
        blocks.append(f"most frequent confusions (true -> predicted)\n{_columns(pairs, 'rl')}")
    worst = [
        (f" {percent(m.probability)}", f"{m.label} -> {m.predicted}", m.path) for m in found.mistakes[:5]
    ]
    if worst:
        blocks.append(f"most confidently wrong (true -> predicted)\n{_columns(worst, 'rll')}")
    return "\n\n".join(blocks)


def trained_part(stage: Mapping[str, Any]) -> str:
    """Which part of the network a stage trained."""
    if stage["from"] == "input":
        return "everything"
    return "head only" if stage["from"] is None else f"from {stage['from']} on"


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    """A line for each stage."""
    rows = []
    for number, stage in enumerate(stages, 1):
        what = f"{trained_part(stage)} ({stage['head']}){', augmented' if stage['augment'] else ''}"
        stopped = "" if stage["stopped_epoch"] is None else ", stopped early"
        accuracy = decimals(stage["metrics"].get("val_accuracy"), 4)
        epochs = f"{stage['epochs']:,} epoch{'' if stage['epochs'] == 1 else 's'}"
        rows.append((f" {number}", what, epochs + stopped, accuracy))
    head = (" ", "trained", "epochs", "validation accuracy")
    return _columns([head, *rows], "rllr")


def shown(text: str) -> str:
    """The text with everything escaped that would move the cursor or reorder what stands beside it."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"
        else char
        for char in str(text)
    )


def decimals(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
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
        table.add_row(*(Text(shown(cell)) for cell in row))
    out = io.StringIO()
    Console(file=out, width=100, color_system=None, force_terminal=False, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _matrix(found: Evaluation) -> str:
    """The confusion matrix; nothing where it is too wide for a terminal."""
    from rich.cells import cell_len

    heads = names = [shown(name) for name in found.classes]
    body = [[f"{count:,}" for count in row] for row in found.confusion_matrix]
    digits, count = max(len(cell) for row in body for cell in row), len(names)
    if count > COUNTED or (digits + 1) * count > 84:
        return ""
    if sum(max(digits, cell_len(name)) + 2 for name in names) > 70:
        heads = [str(number) for number in range(1, count + 1)]
        names = [f"{number:>2} {name}" for number, name in enumerate(names, 1)]
    rows = [["", *heads], *([name, *cells] for name, cells in zip(names, body, strict=True))]
    return _columns(rows, "l" + "r" * count, gap=2 if (digits + 2) * count <= 70 else 1)
