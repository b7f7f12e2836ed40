"""`tlray fit`: features to a model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tlray.cli.arguments import Features
from tlray.cli.options import OnRay, Result, command
from tlray.config import FitConfig


@command
def fit(
    features: Features,
    out: Annotated[str, typer.Option(help="the model to write: a new folder or URI")],
    config: FitConfig,
    run: OnRay,
) -> Result:
    """Train a head on a feature set; any number of workers gives the same weights."""
    from tlray.fit import fit

    def line(metrics: dict[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "epoch")
        print(f"epoch {metrics['epoch']:>3}/{config.epochs}  {values}", file=sys.stderr, flush=True)

    found = fit(features, out, config, address=run.address, report=line)
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in found["metrics"].items())
    return Result(
        found,
        f"{found['rows']:,} rows, {found['epochs']} epochs in {found['seconds']:.1f} s; "
        f"kept epoch {found['kept_epoch']}: {metrics}\nmodel: {found['out']}",
    )
