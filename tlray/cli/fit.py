"""`tlray fit`: features to a model."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from tlray.cli.arguments import Features
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import print_epoch
from tlray.core.config import FitConfig


@command
def fit(
    features: Features,
    out: Annotated[str, typer.Option(help="the model to write: a new folder or URI")],
    config: FitConfig,
    run: OnRay,
) -> Result:
    """Train a head on a feature set; any number of workers gives the same weights."""
    from tlray.training.fit import fit

    report = partial(print_epoch, epochs=config.epochs)
    found = fit(features, out, config, address=run.address, report=report)
    return Result(found, summary(found))


def summary(found: dict[str, Any]) -> str:
    """What became of a training, for people."""
    from tlray.features.bottleneck import sentence

    metrics = ", ".join(f"{name} {value:.4f}" for name, value in found["metrics"].items())
    lines = [
        f"{found['rows']:,} rows, {found['trainable_tensors']} of {found['tensors']} tensors trained, "
        f"{found['epochs']} epochs in {found['seconds']:.1f} s",
        f"kept epoch {found['kept_epoch']}: {metrics}",
        f"model: {found['out']}",
    ]
    lines.insert(1, sentence(found))
    if (stopped := found["stopped_epoch"]) is not None:
        lines.insert(1, f"stopped after epoch {stopped + 1} ({stopped} as Keras counts, from zero)")
    if found["errors"]:
        lines.insert(0, f"{found['errors']:,} images could not be decoded: see {found['out']}/errors")
    return "\n".join(lines)
