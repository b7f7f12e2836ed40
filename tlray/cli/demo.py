"""`tlray demo`: the whole job on real images, in one command."""

from __future__ import annotations

from typing import Annotated

from tlray.cli.arguments import option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.tables import table
from tlray.core.settings import OUTPUT


@command
def demo(
    run: OnRay,
    out: Annotated[str, option("--out FOLDER", OUTPUT, "Local folder to write everything to.")] = "demo",
) -> Result:
    """Try a whole job on 1,797 images of handwritten digits, which come with scikit-learn.

    The demo extracts features, trains a head, evaluates the model and predicts; on 2 cores it takes a minute.

    Examples:
        tlray demo
    """
    from tlray.recipes.demo import demo

    found = demo(out, address=run.address)
    shown = {**vars(found), "accuracy": f"{found.accuracy:.3f}", "seconds": f"{found.seconds:.0f}"}
    return Result(found, table([(name, str(value)) for name, value in shown.items()]))
